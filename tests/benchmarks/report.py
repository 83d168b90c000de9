"""What a benchmark yields: measurements and bounds; and how they are shown, as tables and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
