"""Says at the end of a run how long each folder of tests took, beside what it may take."""

import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

BUDGETS_S = {
    "unit": 90,
    "images": 60,
    "model": 120,
    "packaging": 120,
    "broker": 800,
    "faults": 240,
    "demo": 60,
    "chaos": 300,
    "benchmarks": 60,
    "hostile": 120,
    "fuzz": 60,
}

_TOOK_S = pytest.StashKey[defaultdict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TOOK_S] = defaultdict(float)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count a test with its fixtures."""
    begun_s = time.monotonic()
    try:
        return (yield)
    finally:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        item.config.stash[_TOOK_S][folder] += time.monotonic() - begun_s


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Only say it: machines are shared, and a slow one is no fault of a test."""
    for folder, took_s in sorted(config.stash[_TOOK_S].items()):
        budget_s = BUDGETS_S[folder]
        line = f"tests/{folder}: {took_s:.0f} s of {budget_s} s"
        terminalreporter.write_line(line, red=took_s > budget_s)
