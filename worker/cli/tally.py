"""What became of each dead letter in one call of replay, counted by reason, and the letters that have to be named."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from rich import box
from rich.table import Table

Place = tuple[int, int]
"""A letter's partition and offset."""


class Fate(StrEnum):
    """What became of a letter."""

    REPLAYED = "replayed"
    ALREADY = "already done"
    OTHER = "of another reason"
    GONE = "value gone"
    REFUSED = "refused"


@dataclass(slots=True)
class Tally:
    """The fates by reason; `foreign` records are no dead letters; `named` are letters by what there is to say."""

    counts: dict[str, Counter[Fate]] = field(default_factory=dict)
    foreign: int = 0
    named: dict[str, list[Place]] = field(default_factory=dict)

    def count(self, reason: str, fate: Fate) -> None:
        """Count a letter."""
        self.counts.setdefault(reason, Counter())[fate] += 1

    def name(self, said: str, place: Place) -> None:
        """Keep a letter's place beside what there is to say of it."""
        self.named.setdefault(said, []).append(place)

    def total(self, fate: Fate) -> int:
        """Return the letters of this fate, of all reasons."""
        return sum(counts[fate] for counts in self.counts.values())

    def table(self, replayed: str) -> Table:
        """Return the counts: a row a reason, a column a fate; the first column is headed `replayed`."""
        fates = [fate for fate in Fate if fate is Fate.REPLAYED or self.total(fate)]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_footer=len(self.counts) > 1)
        table.add_column("reason", "all", no_wrap=True)
        for fate in fates:
            heading = replayed if fate is Fate.REPLAYED else fate.value
            table.add_column(heading, str(self.total(fate)), justify="right", no_wrap=True)
        for reason, counts in sorted(self.counts.items()):
            table.add_row(reason, *(str(counts[fate]) for fate in fates))
        return table

    def lines(self, topic: str) -> Iterator[str]:
        """Yield what there is to say beside the counts."""
        for said, places in self.named.items():
            yield f"{said}: {name_places(topic, places)}"
        if self.foreign:
            yield f"records of {topic} that are no dead letters, and were left alone: {self.foreign}"


def name_places(topic: str, places: Iterable[Place]) -> str:
    """Name letters by partition, their offsets in ranges: `dead-letters[0]@3-5,7 dead-letters[1]@4`."""
    spans: dict[int, list[range]] = {}
    for partition, offset in sorted(places):
        found = spans.setdefault(partition, [])
        if found and found[-1].stop == offset:
            found[-1] = range(found[-1].start, offset + 1)
        else:
            found.append(range(offset, offset + 1))
    return " ".join(f"{topic}[{partition}]@{','.join(map(_name, found))}" for partition, found in spans.items())


def _name(span: range) -> str:
    return str(span.start) if len(span) == 1 else f"{span.start}-{span.stop - 1}"
