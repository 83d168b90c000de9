import ctypes
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

from worker.system import SchedAttr, lengthen_slices, schedule_as_batch

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
LINUX = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
PIECE_BYTES = 16_000_000
PAGE_BYTES = 4_096


def test_a_thread_that_nobody_scheduled_otherwise_becomes_batch_work() -> None:
    assert _policies(chosen=None) == (os.SCHED_OTHER, os.SCHED_BATCH)


def test_a_policy_that_somebody_chose_stays() -> None:
    assert _policies(chosen=os.SCHED_IDLE) == (os.SCHED_IDLE, os.SCHED_IDLE)


def test_batch_work_has_slices_of_10_ms_where_linux_takes_wishes_and_so_have_its_threads() -> None:
    takes_wishes = LINUX >= (6, 12) and platform.machine() in SCHED_GETATTR

    assert _slices_ms(os.SCHED_BATCH) == ([10, 10] if takes_wishes else [0, 0])


def test_the_slices_of_another_policy_stay() -> None:
    assert 10 not in _slices_ms(os.SCHED_OTHER)


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


def _slices_ms(policy: int) -> list[float]:
    """Return the slice of a thread of that policy that asked for longer ones, and of one that it began; 0: not told."""

    def own_ms() -> float:
        told = SchedAttr()
        call = SCHED_GETATTR.get(platform.machine(), -1)
        ctypes.CDLL(None).syscall(call, 0, ctypes.byref(told), ctypes.sizeof(told), 0)
        return float(told.sched_runtime / 1e6)

    def ask() -> list[float]:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        lengthen_slices()
        slices_ms = [own_ms()]
        child = Thread(target=lambda: slices_ms.append(own_ms()))
        child.start()
        child.join()
        return slices_ms

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
