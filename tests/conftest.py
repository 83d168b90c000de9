"""Runs each folder of tests in one process, and says at the end how long each took, beside what it may take."""

import signal
from collections import defaultdict

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

BUDGETS_S = {
    "unit": 90,
    "images": 60,
    "model": 150,
    "packaging": 120,
    "broker": 950,
    "faults": 240,
    "demo": 60,
    "chaos": 300,
    "benchmarks": 150,
    "hostile": 120,
    "fuzz": 60,
}


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, with all it starts
    if not hasattr(config, "workerinput"):  # pytest-xdist's: this is not the process that reports
        config.pluginmanager.register(_Clock())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Keep together what shares a broker, a cluster or a measurement."""
    return _ByFolder(config, log)


class _ByFolder(LoadScopeScheduling):  # type: ignore[misc]  # ships no types
    def _split_scope(self, nodeid: str) -> str:
        return _folder(nodeid)


class _Clock:
    """Adds up, by folder, how long tests took with their fixtures."""

    def __init__(self) -> None:
        self._took_s: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took_s[_folder(report.nodeid)] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Only say it: machines are shared, and a slow one is no fault of a test."""
        for folder, took_s in sorted(self._took_s.items()):
            budget_s = BUDGETS_S[folder]
            line = f"tests/{folder}: {took_s:.0f} s of {budget_s} s"
            terminalreporter.write_line(line, red=took_s > budget_s)


def _folder(nodeid: str) -> str:
    return nodeid.split("/")[1]
