"""What the processor can do for a model on the CPU, as Linux tells it; of other systems only the cores are known."""

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Linux's names of what multiplies in bf16, the faster first: arch/x86/include/asm/cpufeatures.h
_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def usable_cores() -> int:
    """Return how many cores this process may use, hyperthreads counted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_unit(cpuinfo: Path = CPUINFO) -> str | None:
    """Return what the processor multiplies in bf16 with; None where it has nothing, or isn't known."""
    flags = cpuinfo_field("flags", cpuinfo).split()
    return next((unit for flag, unit in _BF16.items() if flag in flags), None)


def cpuinfo_field(name: str, cpuinfo: Path = CPUINFO) -> str:
    """Return a field of the first processor, empty where there is none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for field, _, value in fields if field.strip() == name), "")
