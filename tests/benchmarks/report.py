"""What a benchmark yields: measurements and bounds; and how they are shown, as tables and as JSON."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Size:
    """How long a benchmark runs. `scale` 1 is the real run; less is a smoke, whose figures mean little."""

    rounds: int
    scale: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One quantity, once a round: at least five values where it is timed."""

    part: str
    name: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """Return what is reported."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Bound:
    """A ratio, once a round, whose median has to be reached, or not exceeded; without a limit it is only shown."""

    part: str
    name: str
    ratios: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ratio(self) -> float:
        """Return what is reported."""
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        """Return whether the ratio is within its limits; one that is not a number never is."""
        return (self.at_least is None or self.ratio >= self.at_least) and (
            self.at_most is None or self.ratio <= self.at_most
        )


Result = Measurement | Bound

_LOG_WIDTH = 120


def show(results: Sequence[Result]) -> None:
    """Print the tables, wide enough where nobody looks on, as in a log."""
    console = Console()
    console = console if console.is_terminal else Console(width=_LOG_WIDTH)
    console.print(_bounds_table(results))
    console.print(_measurements_table(results))


def write_json(file: Path, about: Mapping[str, object], results: Sequence[Result]) -> None:
    """Write all that was measured, with what is derived of it, and what it is `about`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, **_as_json(results)}, indent=1, ensure_ascii=False))


def off(results: Sequence[Result]) -> list[str]:
    """Name the bounds that don't hold."""
    return [f"{bound.part}: {bound.name}" for bound in results if isinstance(bound, Bound) and not bound.holds]


def _bounds_table(results: Sequence[Result]) -> Table:
    table = Table("part", "ratio of", "median", "least … most", "has to be", "", title="Ratios")
    for bound in results:
        if isinstance(bound, Bound):
            ratio, spread = f"{bound.ratio:.3g}", _spread(bound.ratios, 3)
            table.add_row(bound.part, bound.name, ratio, spread, _limits(bound), _verdict(bound))
    return table


def _measurements_table(results: Sequence[Result]) -> Table:
    table = Table("part", "measured", "median", "unit", "least … most", "rounds", title="Measured")
    for one in results:
        if isinstance(one, Measurement):
            median, rounds = f"{one.median:.4g}", str(len(one.values))
            table.add_row(one.part, one.name, median, one.unit, _spread(one.values, 4), rounds)
    return table


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the least and the most: the noise."""
    return f"{min(values):.{digits}g} … {max(values):.{digits}g}"


def _as_json(results: Sequence[Result]) -> Mapping[str, Sequence[Mapping[str, object]]]:
    return {
        "bounds": [
            asdict(bound) | {"ratios": list(bound.ratios), "ratio": bound.ratio, "holds": bound.holds}
            for bound in results
            if isinstance(bound, Bound)
        ],
        "measurements": [
            asdict(one) | {"values": list(one.values), "median": one.median}
            for one in results
            if isinstance(one, Measurement)
        ],
    }


def _limits(bound: Bound) -> str:
    return " and ".join(_said_limits(bound)) or "–"


def _said_limits(bound: Bound) -> Iterator[str]:
    if bound.at_least is not None:
        yield f"≥ {bound.at_least:g}"
    if bound.at_most is not None:
        yield f"≤ {bound.at_most:g}"


def _verdict(bound: Bound) -> Text:
    if bound.at_least is None and bound.at_most is None:
        return Text("")
    return Text("holds", "green") if bound.holds else Text("off", "bold red")
