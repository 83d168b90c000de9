"""What a run of the benchmark works with: the device, the model and how many batches fit in its time."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import torch

from worker.encoder import Encoder
from worker.processor import usable_cores
from worker.weights import Model, load_model


def device_number(name: str) -> int:
    """Return N of cuda:N, 0 of cuda: torch.cuda.set_device takes no cuda without a number."""
    return torch.device(name).index or 0


@dataclass(frozen=True, slots=True)
class Machine:
    """A device with a model of random weights, and the cores beside it."""

    device: str
    model: str

    @property
    def is_cuda(self) -> bool:
        """Return whether the goals are for it."""
        return self.device != "cpu"

    @property
    def cores(self) -> int:
        """Return how many cores this process may use."""
        return usable_cores()

    @property
    def precisions(self) -> Sequence[str]:
        """Return the precisions to measure, the one to compare with first."""
        return ("fp16", "bf16", "fp32") if self.is_cuda else ("fp32",)

    @property
    def batches(self) -> Sequence[int]:
        """Return the sizes of batches to measure, the worker's own last."""
        return (1, 8, 32, 64, 128, 512, 256) if self.is_cuda else (1, 2)

    @property
    def processes(self) -> Sequence[int]:
        """Return how many workers to run beside each other."""
        return (1, 2, 4) if self.is_cuda else (1,)

    @property
    def max_batch(self) -> int:
        """Return the worker's own size of batches here."""
        return self.batches[-1]

    def load(self) -> Model:
        """Make the model, in fp32 on the CPU."""
        made = _load(self.model)  # the tower is taken over by who moves it to a device
        return replace(made, tower=deepcopy(made.tower))

    def encoder(self, precision: str) -> Encoder:
        """Make the worker's encoder, with nothing reserved."""
        return Encoder(self.load(), self.device, precision, normalized=False)

    def __str__(self) -> str:
        """Name what the figures are of."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else "the CPU: a dry run, no goal is checked"
        return f"{self.model} on {name}, {self.cores} cores, torch {torch.__version__}, CUDA {torch.version.cuda}"


@cache
def _load(model: str) -> Model:
    return load_model(model, "random")
