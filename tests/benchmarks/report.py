"""What a benchmark yields: measurements and bounds; and how they are shown, as tables and as JSON."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

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

    @property
    def spread(self) -> tuple[float, float]:
        """Return the least and the most: the noise."""
        return min(self.values), max(self.values)


@dataclass(frozen=True, slots=True)
class Bound:
    """A ratio that has to be reached, or not exceeded; where it has neither limit it is only shown."""

    part: str
    name: str
    ratio: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Return whether the ratio is within its limits; one that is not a number never is."""
        return (self.at_least is None or self.ratio >= self.at_least) and (
            self.at_most is None or self.ratio <= self.at_most
        )


Result = Measurement | Bound


def bounds_table(results: Sequence[Result]) -> Table:
    """Return the ratios, each with what it has to be, and whether it is."""
    table = Table("part", "ratio of", "is", "has to be", "", title="Ratios")
    for bound in results:
        if isinstance(bound, Bound):
            table.add_row(bound.part, bound.name, f"{bound.ratio:.3g}", _limits(bound), _verdict(bound))
    return table


def measurements_table(results: Sequence[Result]) -> Table:
    """Return the medians, each with the least and the most of its rounds."""
    table = Table("part", "measured", "median", "unit", "least … most", "rounds", title="Measured")
    for one in results:
        if isinstance(one, Measurement):
            least, most = one.spread
            spread = f"{least:.4g} … {most:.4g}"
            table.add_row(one.part, one.name, f"{one.median:.4g}", one.unit, spread, str(len(one.values)))
    return table


def as_json(results: Sequence[Result]) -> Mapping[str, Sequence[Mapping[str, object]]]:
    """Return all that was measured, with what is derived of it."""
    return {
        "bounds": [asdict(bound) | {"holds": bound.holds} for bound in results if isinstance(bound, Bound)],
        "measurements": [
            asdict(one) | {"values": list(one.values), "median": one.median}
            for one in results
            if isinstance(one, Measurement)
        ],
    }


def off(results: Sequence[Result]) -> list[Bound]:
    """Return the bounds that don't hold."""
    return [bound for bound in results if isinstance(bound, Bound) and not bound.holds]


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
