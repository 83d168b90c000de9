import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.hostile.bombs import BOMBS, Bomb
from tests.hostile.measures import KINDS, MAX_CPU_MS, MAX_MEMORY_MB, Cost

ROOT = Path(__file__).parents[2]
IN_TIME_S = 200
SAYS = r"\d|Error: |broken|neither|not one msgpack value"


@cache
def _costs(kind: str) -> Mapping[str, Cost]:
    """Measure all of them, in a process that has done nothing else."""
    command = [sys.executable, "-m", "tests.hostile", "--kind", kind]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=IN_TIME_S, check=True)
    costs = [Cost(**json.loads(line)) for line in run.stdout.splitlines()]
    return {cost.bomb: cost for cost in costs}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=lambda bomb: bomb.name)
def test_a_record_that_is_made_to_hurt_gets_its_outcome_at_little_cost(bomb: Bomb, kind: str) -> None:
    cost = _costs(kind)[bomb.name]

    assert cost.outcome == (bomb.reason or "Prepared")
    assert (cost.cpu_ms < MAX_CPU_MS, cost.memory_mb < MAX_MEMORY_MB) == (True, True), cost


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_dead_letter_says_of_them_is_short_and_has_a_number_or_the_decoders_word(kind: str) -> None:
    for cost in _costs(kind).values():
        assert len(cost.detail.encode()) <= 512, cost
        assert cost.outcome == "Prepared" or re.search(
            r"\d|Error: |broken|neither|not one msgpack value", cost.detail
        ), cost
