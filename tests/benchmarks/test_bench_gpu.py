"""The GPU's benchmark without one: the dry run, and the goals as they are checked on a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.benchmarks.gpu.__main__ import GOALS, goals, main
from tests.benchmarks.gpu.machine import Machine, device_number
from tests.benchmarks.gpu.whole import PART
from tests.benchmarks.report import Bound, Measurement

SMALL = "ViT-S-32-alt"


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch use one core, for two that wait for each other are slow where others work beside them."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the workers
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_the_device_is_chosen_by_its_number(name: str, number: int) -> None:
    assert device_number(name) == number


@pytest.mark.usefixtures("_one_thread")
def test_the_dry_run_measures_all_parts_and_checks_no_goal(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    flags = ["--device", "cpu", "--scale", "0.01", "--rounds", "1", "--model", SMALL, "--json", str(path)]

    result = CliRunner().invoke(main, flags, catch_exceptions=False)

    assert result.exit_code == 0
    results = json.loads(path.read_text())
    measured = results["measurements"]
    assert {it["part"] for it in measured} == {"model alone", "tricks", "copies", "preparation", "roofline", PART}
    assert [it["name"] for it in measured if min(it["values"]) <= 0] == []
    checked = [it for it in results["bounds"] if it["part"] == "goals"]
    assert len(checked) == len(GOALS) + 2
    assert all(it["name"].endswith("not checked") and it["at_least"] is None for it in checked)


@pytest.mark.parametrize(
    ("model", "large", "small", "missed"),
    [
        (31_000, 14_500, 20_000, []),
        (31_000, 14_000, 20_000, ["500×375 of its roofline"]),
        (29_000, 14_500, 20_000, ["model alone ≥ 30000 images/s"]),
        (31_000, 14_500, 14_000, ["224×224 ≥ 15000 images/s", "224×224 of its roofline"]),
    ],
)
def test_on_a_gpu_each_goal_is_checked(model: float, large: float, small: float, missed: list[str]) -> None:
    machine = Machine("cuda", SMALL)
    prepared = {"500×375": 16_000, "224×224": 22_000}
    results = [
        Measurement("model alone", "fp16, batches of 256, CUDA graph", "images/s", [model]),
        Measurement("model alone", "fp16, batches of 256, torch.compile", "images/s", [10 * model]),
        *(
            Measurement("preparation", f"fast, {name}, a process on each core", "", [rate])
            for name, rate in prepared.items()
        ),
        *(Measurement("decoding", f"fast, {name}, 1 threads", "", [rate / 10]) for name, rate in prepared.items()),
        Measurement(PART, "500×375, cpu decoding, 1 workers of 16 prepare threads", "images/s", [large / 2]),
        Measurement(PART, "500×375, cpu decoding, 2 workers of 8 prepare threads", "images/s", [large]),
        Measurement(PART, "224×224, cpu decoding, 1 workers of 16 prepare threads", "images/s", [small]),
        Measurement(PART, "224×224, nvjpeg decoding, 1 workers of 16 prepare threads", "images/s", [10 * small]),
    ]

    bounds = [it for it in goals(machine, results) if isinstance(it, Bound)]

    assert [it.name for it in bounds if not it.holds] == missed
