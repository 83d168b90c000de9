import platform
import random
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.dead_letter import Rejection
from schemas.embedding import read_embedding
from tests.fuzz import targets
from tests.fuzz.mutants import Figures, run_mutants
from tests.fuzz.seeds import documents, mutated, pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of what is odd about a picture

ROOT = Path(__file__).parents[2]
MAX_CORPUS_BYTES = 300_000
MUTANTS = 3_000

NAMES = st.sampled_from(
    ["id", "blob", "chunks", "tags", "embedding", "model", "dtype", "type", "shape", "data", "kind", "nd"]
)
MSGPACK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=3) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=20,
)
A_RECORD = st.dictionaries(NAMES, MSGPACK, max_size=8)
QUICKLY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def _input(target: str, data: bytes) -> bytes:
    return bytes([list(targets.TARGETS).index(target)]) + data


# The corpus.


def test_the_corpus_is_small_and_has_every_target() -> None:
    files = list(targets.CORPUS.iterdir())

    assert sum(file.stat().st_size for file in files) < MAX_CORPUS_BYTES
    assert {file.read_bytes()[0] for file in files} == set(range(len(targets.TARGETS)))


@pytest.mark.parametrize("file", sorted(targets.CORPUS.iterdir()), ids=lambda file: file.name)
def test_what_is_in_the_corpus_gets_one_outcome(file: Path) -> None:
    targets.run(file.read_bytes())


@pytest.mark.parametrize("name", sorted(targets.seeds()))
def test_a_seed_gets_one_outcome(name: str) -> None:
    targets.run(targets.seeds()[name])


# Arbitrary values.


@QUICKLY
@given(value=MSGPACK | A_RECORD, target=st.sampled_from(["document", "embedding", "record"]))
def test_any_msgpack_value_gets_one_outcome(value: object, target: str) -> None:
    targets.run(_input(target, bytes(msgpack.packb(value, strict_types=False))))


@QUICKLY
@given(data=st.binary(max_size=64), target=st.sampled_from(list(targets.TARGETS)))
def test_any_bytes_get_one_outcome(data: bytes, target: str) -> None:
    targets.run(_input(target, data))


@QUICKLY
@given(seed=st.integers(0, 2**32), number=st.integers(0, 5), target=st.sampled_from(["document", "record"]))
def test_a_mutated_document_gets_one_outcome(seed: int, number: int, target: str) -> None:
    whole = documents(pictures()["png-palette"])[number]

    targets.run(_input(target, mutated(random.Random(seed), whole)))  # noqa: S311 - mutations, no secret


@QUICKLY
@given(seed=st.integers(0, 2**32), form=st.sampled_from(sorted(pictures())))
def test_a_mutated_picture_gets_one_outcome(seed: int, form: str) -> None:
    targets.run(_input("picture", mutated(random.Random(seed), pictures()[form])))  # noqa: S311


@QUICKLY
@given(value=MSGPACK)
def test_an_embedding_record_with_any_tags_is_read_or_rejected(value: object) -> None:
    packed = bytes(msgpack.packb({"id": "a", "tags": value}))

    try:
        assert read_embedding(packed).id == "a"
    except Rejection as rejection:
        pytest.fail(f"rejected: {rejection}")


# Mutants through the prepare stage.


def test_mutated_records_come_out_of_the_prepare_stage_as_outcomes_in_their_order() -> None:
    figures = run_mutants(MUTANTS, seed=1, threads=2, say=lambda _: None)

    assert figures.troubles(MUTANTS) == []
    assert len(figures.outcomes) > 6, figures.outcomes
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare-")]


def test_a_lost_record_a_slow_one_and_memory_that_grows_are_troubles() -> None:
    figures = Figures()
    figures.outcomes["embedded"] = 9
    figures.slowest = (6.0, b"\xff")
    figures.settled_bytes, figures.peak_bytes = 100_000_000, 300_000_000

    assert figures.troubles(10) == [
        "9 outcomes of 10 records",
        "a record that took 6.0 s: ff",
        "memory grew from 100 to 300 MB",
    ]


# The fuzzer itself.


def test_the_fuzzer_finds_nothing_in_a_few_seconds_or_says_that_it_runs_elsewhere() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.05"]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    runs_here = sys.platform == "linux" and platform.machine() == "x86_64"
    expected = (0, "DONE") if runs_here else (1, "atheris is for Linux on x86-64")
    assert (run.returncode, expected[1] in run.stderr) == (expected[0], True), run.stderr[-2_000:]
