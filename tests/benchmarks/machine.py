"""Where the figures come from: the processor, the system, and the versions that they depend on."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import confluent_kafka
import torch

from worker.processor import cpuinfo_field, usable_cores

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
_PACKAGES = ("torch", "numpy", "pillow", "simplejpeg", "torchvision", "open_clip_torch", "confluent-kafka")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, at one moment."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_gib: float
    gpu: str | None
    system: str
    python: str
    packages: Mapping[str, str]
    date: str
    commit: str

    def lines(self) -> list[str]:
        """Say it in a few lines."""
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        gpu = f"; {self.gpu}" if self.gpu else ""
        return [
            f"{self.processor}{flags}, {self.cores} cores, {self.memory_gib:.0f} GiB{gpu}",
            f"{self.system}; Python {self.python}; {packages}",
            f"{self.date}, commit {self.commit}",
        ]


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    flags = cpuinfo_field("flags").split()
    return Machine(
        processor=cpuinfo_field("model name") or platform.processor() or platform.machine(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=usable_cores(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: version(name) for name in _PACKAGES} | {"librdkafka": confluent_kafka.libversion()[0]},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
    )


def _commit() -> str:
    """Return the commit, with a + where the tree has changed since."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        described = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return "unknown"
    return described.stdout.strip() or "unknown"
