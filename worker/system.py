"""What a worker asks of Linux and of glibc before its threads begin, for throughput; of other systems nothing."""

import ctypes
import logging
import os
import platform
import sys

log = logging.getLogger(__name__)

# https://man7.org/linux/man-pages/man2/sched_setattr.2.html: neither Python nor glibc before 2.41 knows the call.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE_NS = 10_000_000

# https://man7.org/linux/man-pages/man3/mallopt.3.html: the parameters' numbers in malloc.h, and bytes.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 32 * 2**20),  # the largest that glibc takes
    "M_TRIM_THRESHOLD": (-1, 512 * 2**20),
    "M_TOP_PAD": (-2, 64 * 2**20),
}


class SchedAttr(ctypes.Structure):
    """How a thread is scheduled; of one that has no deadline, `sched_runtime` is its slice in ns."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("sched_policy", ctypes.c_uint32),
        ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", ctypes.c_uint32),
        ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64),
        ("sched_period", ctypes.c_uint64),
    )


def prefer_throughput() -> None:
    """Make all wishes known; the threads that begin afterwards have them too."""
    schedule_as_batch()
    lengthen_slices()
    keep_freed_memory()


def schedule_as_batch() -> None:
    """Let what wakes wait for what runs, for the rest of its slice, and not interrupt it.

    Only where the cores are taken: an idle one wakes at once. A policy that somebody chose for the process stays.
    https://man7.org/linux/man-pages/man7/sched.7.html
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it
        log.info("not scheduled as batch work: %s", error)


def lengthen_slices() -> None:
    """Let batch work run for 10 ms, not for 1 to 4, before what else wants its core: most pictures take 1 to 10.

    Linux takes the wish from 6.12 on: https://docs.kernel.org/scheduler/sched-eevdf.html
    """
    call = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or call is None or os.sched_getscheduler(0) != os.SCHED_BATCH:
        return
    wish = SchedAttr(
        size=ctypes.sizeof(SchedAttr),
        sched_policy=os.SCHED_BATCH,
        sched_nice=os.getpriority(os.PRIO_PROCESS, 0),
        sched_runtime=_SLICE_NS,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(call, 0, ctypes.byref(wish), 0):
        log.info("no slices of %d ms: %s", _SLICE_NS // 1_000_000, os.strerror(ctypes.get_errno()))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next.

    By itself it gives a fetched piece back to the system once its last record is freed, and the next piece comes in by
    page faults, 4 KiB at a time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, (parameter, size_bytes) in _MALLOC.items():
        if not mallopt(parameter, size_bytes):
            log.info("malloc refuses %s=%d", name, size_bytes)
