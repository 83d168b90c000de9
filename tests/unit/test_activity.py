import signal
import subprocess
import sys
import textwrap
import traceback
import tracemalloc
from pathlib import Path

import pytest

from worker.activity import call_as

ROOT = Path(__file__).parents[2]
IN_TIME_S = 60


def _died(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=IN_TIME_S, check=False)


def test_a_call_gives_what_it_returns_and_raises_what_it_raises() -> None:
    assert call_as("documents[0]@7", lambda: 7) == 7
    with pytest.raises(LookupError, match="no such thing"):
        call_as("documents[0]@7", lambda: _raise(LookupError("no such thing")))


def _raise(error: Exception) -> None:
    raise error


def test_the_stack_has_the_name_of_the_call() -> None:
    stack = call_as("documents[0]@7", traceback.extract_stack)

    assert "documents[0]@7" in [frame.name for frame in stack]


def test_names_of_calls_take_no_memory() -> None:
    call_as("documents[0]@0", int)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            call_as(f"documents[0]@{number}", int)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 100_000


def test_a_crash_in_native_code_names_the_records_of_all_prepare_threads() -> None:
    died = _died(
        """
        import faulthandler, threading
        import numpy as np
        from worker.batcher import Batcher
        from worker.pipeline import Limits, Pipeline
        from worker.records import Record
        from tests.unit.test_pipeline import _Encoder, _Observer

        at_work = threading.Barrier(2)

        def prepare(record, beat):
            at_work.wait()
            if record.offset == 7:
                faulthandler._sigsegv()
            threading.Event().wait()

        faulthandler.enable()
        batcher = Batcher(np.empty((2, 2, 2, 3), np.uint8), 2, 0.0)
        pipeline = Pipeline(prepare, _Encoder(), batcher, Limits(9, 9), 2, _Observer())
        for offset in (7, 8):
            pipeline.submit(Record("documents", 3, offset, None, b"", None, ()))
        threading.Event().wait()
        """
    )

    assert died.returncode == -signal.SIGSEGV, died.stderr
    assert "Segmentation fault" in died.stderr
    assert "in documents[3]@7" in died.stderr
    assert "in documents[3]@8" in died.stderr


def test_native_code_that_hangs_with_the_interpreters_lock_ends_the_process_with_its_record() -> None:
    died = _died(
        """
        import ctypes, threading
        import worker.health
        from worker.activity import call_as
        from worker.health import Health, start_watchdog

        worker.health._INTERPRETER_PATIENCE_S = 1.0
        start_watchdog(Health(0.5))
        threading.Event().wait(1)
        call_as("documents[3]@7", lambda: ctypes.PyDLL(None).sleep(600))
        """
    )

    assert died.returncode == 1, died.stderr
    assert "in documents[3]@7" in died.stderr


def test_a_process_that_works_is_not_ended_by_what_watches_the_interpreter() -> None:
    ended = _died(
        """
        import time
        import worker.health
        from worker.health import Health, start_watchdog

        worker.health._INTERPRETER_PATIENCE_S = 0.7
        start_watchdog(Health(0.3))
        time.sleep(3)
        """
    )

    assert (ended.returncode, ended.stderr) == (0, "")
