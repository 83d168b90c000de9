"""What a worker asks of Linux and of glibc before its threads begin, for throughput; of other systems nothing."""

import ctypes
import logging
import os

log = logging.getLogger(__name__)

# https://man7.org/linux/man-pages/man3/mallopt.3.html: the parameters' numbers in malloc.h, and bytes.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 32 * 2**20),  # the largest that glibc takes
    "M_TRIM_THRESHOLD": (-1, 512 * 2**20),
    "M_TOP_PAD": (-2, 64 * 2**20),
}


def prefer_throughput() -> None:
    """Make both wishes known; the threads that begin afterwards have them too."""
    schedule_as_batch()
    keep_freed_memory()


def schedule_as_batch() -> None:
    """Let what wakes wait for what runs, for the rest of its slice (a few ms), and not interrupt it.

    Only where the cores are taken: an idle one wakes at once. A policy that somebody chose for the process stays.
    https://man7.org/linux/man-pages/man7/sched.7.html
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it
        log.info("not scheduled as batch work: %s", error)


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
