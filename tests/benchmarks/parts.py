"""The parts alone: preparation, decoding and resizing, prepare threads, schemas, and the model."""

from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks.model import model
from tests.benchmarks.path import path
from tests.benchmarks.preparation import preparation, steps, threads
from tests.benchmarks.records import records
from tests.benchmarks.report import Result, Size
from tests.benchmarks.timing import on_one_core


def parts(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield all of them; but for the model's, all are of one core."""
    for part in (preparation, steps, threads, records, path):
        yield from on_one_core(partial(_all_of, part, size, say))
    yield from model(size, say)


def _all_of(
    part: Callable[[Size, Callable[[str], None]], Iterator[Result]], size: Size, say: Callable[[str], None]
) -> list[Result]:
    return list(part(size, say))
