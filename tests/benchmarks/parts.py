"""The parts alone: preparation, decoding and resizing, prepare threads, schemas, and the model."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from tests.benchmarks.model import model
from tests.benchmarks.preparation import preparation, steps, threads
from tests.benchmarks.records import records
from tests.benchmarks.report import Result, Size


def parts(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield all of them; whatever is of one core runs on a thread to which torch gives one."""
    threads_of_torch = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for part in (preparation, steps, threads, records):
            yield from pool.submit(lambda part=part: list(part(size, say))).result()
    torch.set_num_threads(threads_of_torch)
    yield from model(size, say)
