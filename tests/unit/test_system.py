import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from worker.system import schedule_as_batch

PIECE_BYTES = 16_000_000
PAGE_BYTES = 4_096


def test_a_thread_that_nobody_scheduled_otherwise_becomes_batch_work() -> None:
    assert _policies(chosen=None) == (os.SCHED_OTHER, os.SCHED_BATCH)


def test_a_policy_that_somebody_chose_stays() -> None:
    assert _policies(chosen=os.SCHED_IDLE) == (os.SCHED_IDLE, os.SCHED_IDLE)


def test_what_is_freed_by_any_thread_is_there_for_the_next_without_page_faults() -> None:
    assert _page_faults("pass") > PIECE_BYTES / PAGE_BYTES
    assert _page_faults("keep_freed_memory()") < 100


def _policies(chosen: int | None) -> tuple[int, int]:
    """Return how a thread is scheduled before and after: the policy is the thread's own."""

    def ask() -> tuple[int, int]:
        if chosen is not None:
            os.sched_setscheduler(0, chosen, os.sched_param(0))
        before = os.sched_getscheduler(0)
        schedule_as_batch()
        return before, os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ask).result()


def _page_faults(first: str) -> int:
    """Return those of a thread that holds five pieces at once, ten times, after it did so twice, in a new process."""
    program = f"""
import resource
from threading import Thread
from worker.system import keep_freed_memory

def hold():
    [bytearray(b"x") * {PIECE_BYTES} for _ in range(5)]

def work():
    hold(), hold()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        hold()
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

{first}
thread = Thread(target=work)
thread.start()
thread.join()
"""
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
