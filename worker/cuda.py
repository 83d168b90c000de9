"""Batches on a CUDA device: one is copied in while the one before is computed, by graphs captured beforehand.

uint8 pixels go from pinned memory to a slot on a stream of their own; the other stream waits for that copy's event,
runs the model and copies the embeddings back to pinned memory. Nothing waits for the whole device. Belongs to the
encode thread once `reserve` has returned.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from worker.slots import Embeddings, Slots, Wait
from worker.tower import Tower

log = logging.getLogger(__name__)

_BUCKETS = (1, 8, 32, 64, 128)  # and the largest batch; a batch between two of them is computed as the larger
_RUNS_BEFORE_CAPTURE = 2  # libraries choose kernels and allocate workspaces in the first run


def buckets(max_batch: int) -> list[int]:
    """Return the sizes of batches that graphs are captured for, the largest first: the others fit in its memory."""
    return sorted({max_batch, *(size for size in _BUCKETS if size < max_batch)}, reverse=True)


def smallest_bucket(captured: Iterable[int], images: int) -> int | None:
    """Return the smallest of the captured sizes that a batch fits in, None where there is none."""
    return min((size for size in captured if size >= images), default=None)


class Cuda:
    """Runs a tower on its CUDA device, with two batches under way."""

    depth = 2

    def __init__(self, tower: Tower) -> None:
        """Make the streams; batches run without slots until `reserve`."""
        self._tower = tower
        self._set_device()
        self._streams = _Streams(*(torch.cuda.Stream() for _ in range(2)))  # type: ignore[no-untyped-call]
        self._capacity = 0
        self._slots = Slots([])

    def reserve(self, max_batch: int) -> None:
        """Allocate the slots, and capture the graphs of a model that can be.

        Raises: `torch.OutOfMemoryError`, and whatever else the model raises.
        """
        slots = [_Slot(self._tower, self._streams, max_batch) for _ in range(self.depth)]
        torch.cuda.synchronize()  # the slots are filled on a stream of their own
        sizes = buckets(max_batch)
        with torch.cuda.stream(self._streams.compute):
            for size in sizes * _RUNS_BEFORE_CAPTURE:
                slots[0].embed(size)
        torch.cuda.synchronize()
        self._capture(slots, sizes)
        self._slots, self._capacity = Slots(slots), max_batch

    def _capture(self, slots: "list[_Slot]", sizes: list[int]) -> None:
        """Capture the graphs of a model that can be; where one fails, there are none, and nothing is left of them."""
        try:
            self._run_without_waiting(slots[0], sizes[-1])
            self._capture_all(slots, sizes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
        else:
            log.info("CUDA graphs for batches of %s", ", ".join(map(str, reversed(sizes))))
            return
        # Out here the frames that failed are gone, and the graph that they had with its memory.
        for slot in slots:
            slot.graphs.clear()
        with suppress(RuntimeError):  # before torch 2.15, where it was a capture that failed
            torch.cuda.empty_cache()
        log.warning("the model can't be captured in CUDA graphs, and runs without: %s", said)

    def _run_without_waiting(self, slot: "_Slot", images: int) -> None:
        """Run once where waiting for the device is an error, as in a capture.

        Before torch 2.15 a capture that fails leaves the allocator as if it went on, and memory is never freed again.
        """
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._streams.compute):
                slot.embed(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def _capture_all(self, slots: "list[_Slot]", sizes: list[int]) -> None:
        """Capture a graph for each size and slot. All share one pool of memory: they run one after the other."""
        pool, compute = torch.cuda.graph_pool_handle(), self._streams.compute
        for size, slot in product(sizes, slots):
            graph = torch.cuda.CUDAGraph()
            # The stream is set around it as well: before torch 2.15 a capture that fails leaves its own behind.
            with torch.cuda.stream(compute), torch.cuda.graph(graph, pool=pool, stream=compute):
                slot.embed(size)
            slot.graphs[size] = graph

    def sizes(self, max_batch: int) -> list[int]:
        """Return the sizes of batches that there are graphs for."""
        return buckets(max_batch)

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        """Return pinned memory, which the device reads while the model computes: uint8 [images, R, R, 3].

        Raises: `MemoryError`.
        """
        size = self._tower.input_size
        try:
            # The array keeps the tensor, whose memory it is.
            pinned: npt.NDArray[np.uint8] = torch.empty(
                (images, size, size, 3), dtype=torch.uint8, pin_memory=True
            ).numpy()
        except RuntimeError as error:
            raise MemoryError(f"no pinned memory for {images} images: {error}") from error
        return pinned

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Wait:
        """Start a batch; one that no slot takes, for its size or for preprocessed images, is done on return."""
        self._set_device()
        if len(preprocessed) or len(pixels) > self._capacity:
            embeddings = self._embed_at_once(pixels, preprocessed)
            return lambda: embeddings
        return self._slots.begin(pixels)

    def _set_device(self) -> None:
        """Make the device this thread's: by another one, each change of streams would open a context on GPU 0."""
        torch.cuda.set_device(self._tower.device.index or 0)

    def _embed_at_once(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Embeddings:
        with torch.cuda.stream(self._streams.compute):
            device = self._tower.device
            images, taken_as_is = (torch.from_numpy(array).to(device) for array in (pixels, preprocessed))
            embeddings: Embeddings = self._tower.embed(images, taken_as_is if len(preprocessed) else None).cpu().numpy()
            return embeddings


@dataclass(frozen=True, slots=True)
class _Streams:
    copies: torch.cuda.Stream
    compute: torch.cuda.Stream


class _Slot:
    """One batch's pixels and embeddings on the device, its embeddings in pinned memory, and the graphs between."""

    def __init__(self, tower: Tower, streams: _Streams, capacity: int) -> None:
        size = tower.input_size
        self._tower = tower
        self._streams = streams
        self._pixels = torch.zeros((capacity, size, size, 3), dtype=torch.uint8, device=tower.device)
        self._embeddings = torch.zeros((capacity, tower.dimensions), device=tower.device)
        self._returned = torch.zeros((capacity, tower.dimensions), pin_memory=True)
        self._is_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Blocking: a thread that spins takes a core from the decoders.
        self._is_done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._images = 0

    def begin(self, pixels: npt.NDArray[np.uint8]) -> None:
        images = self._images = len(pixels)
        with torch.cuda.stream(self._streams.copies):
            self._pixels[:images].copy_(torch.from_numpy(pixels), non_blocking=True)
            self._is_copied.record(self._streams.copies)
        with torch.cuda.stream(self._streams.compute):
            self._streams.compute.wait_event(self._is_copied)
            bucket = smallest_bucket(self.graphs, images)
            if bucket is None:
                self.embed(images)
            else:
                self.graphs[bucket].replay()
            self._returned[:images].copy_(self._embeddings[:images], non_blocking=True)
            self._is_done.record(self._streams.compute)

    def wait(self) -> Embeddings:
        self._is_done.synchronize()
        embeddings: Embeddings = self._returned[: self._images].numpy().copy()
        return embeddings

    def embed(self, images: int) -> None:
        """Run the model on the first images; on the current stream, where it may be captured."""
        self._embeddings[:images].copy_(self._tower.embed(self._pixels[:images]))
