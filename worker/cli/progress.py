"""How far the dead letters of a partition are replayed, as values: nothing of Kafka is in here.

A group's offset is one number a partition, and letters are replayed by reason, so the offset says where the next call
begins to read, and its metadata says what is replayed beyond it.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Self

from worker.cli.tally import Fate


@dataclass(frozen=True, slots=True)
class Progress:
    """Which letters of a partition are replayed: those before the position of their reason and in no range of `left`.

    `rest` is the position of every reason that `reasons` doesn't name. In `left` are the letters that couldn't be
    replayed; no letter inside one of its ranges is.
    """

    rest: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    left: tuple[range, ...] = ()

    @classmethod
    def read(cls, offset: int, metadata: str) -> Self:
        """Read what was committed; an offset without metadata, such as a tool sets, is that of every reason.

        Raises: `ValueError`.
        """
        if not metadata:
            return cls(offset)
        try:
            told = json.loads(metadata)
            edges = list(accumulate(told["left"]))
            left = tuple(map(range, edges[::2], edges[1::2]))
            return cls(int(told["rest"]), {name: int(position) for name, position in told["reasons"].items()}, left)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{metadata!r} is not the progress of a replay") from error

    @property
    def offset(self) -> int:
        """Return where the first letter is that may not be replayed."""
        return min([self.rest, *self.reasons.values(), *(each.start for each in self.left)])

    @property
    def metadata(self) -> str:
        """Return the rest as JSON, empty where the offset says it all; of `left` the distances between its edges."""
        if not self.reasons and not self.left:
            return ""
        edges = [edge for each in self.left for edge in (each.start, each.stop)]
        distances = [edge - before for before, edge in pairwise([0, *edges])]
        told = {"rest": self.rest, "reasons": self.reasons, "left": distances}
        return json.dumps(told, separators=(",", ":"))

    def position(self, reason: str) -> int:
        """Return the offset before which the letters of this reason are replayed, less those in `left`."""
        return self.reasons.get(reason, self.rest)

    def is_replayed(self, reason: str, offset: int) -> bool:
        """Return whether the letter at this offset is replayed."""
        return offset < self.position(reason) and not self.is_left(offset)

    def is_left(self, offset: int) -> bool:
        """Return whether the letter at this offset couldn't be replayed."""
        return any(offset in each for each in self.left)

    def forgetting(self, reasons: Collection[str]) -> "Progress":
        """Return the progress of somebody who has replayed nothing of these reasons; of any where none is named."""
        return Progress(self.rest, {**self.reasons, **dict.fromkeys(reasons, 0)}, self.left) if reasons else Progress()

    def advanced(self, position: int, reasons: Collection[str], left: Iterable[range]) -> "Progress":
        """Return the progress after all before `position` but `left` is replayed, of these reasons or of all."""
        rest = self.rest if reasons else max(self.rest, position)
        named = dict(self.reasons) | {name: max(self.position(name), position) for name in reasons or self.reasons}
        beyond = (range(max(each.start, position), each.stop) for each in self.left if each.stop > position)
        return Progress(rest, {name: at for name, at in named.items() if at != rest}, (*left, *beyond))


class Passage:
    """One call's way through the letters of a partition. It sees all of `known.left` again: it begins before them."""

    def __init__(self, known: Progress, reasons: Collection[str]) -> None:
        """Begin where `known` does, to replay letters of these reasons, or of all where none is named."""
        self.known = known
        self.position = known.offset
        self._reasons = reasons
        self._replayed: dict[int, bool] = {}
        self._left: list[range] = []
        self._joined = False

    def fate(self, reason: str, offset: int) -> Fate | None:
        """Return what becomes of a letter that is not to be replayed now, None of one that is."""
        if self.known.is_replayed(reason, offset):
            self.note(offset, replayed=True)
            return Fate.ALREADY
        if self._reasons and reason not in self._reasons:
            if self.known.is_left(offset):
                self.note(offset, replayed=False)
            return Fate.OTHER
        return None

    def note(self, offset: int, *, replayed: bool) -> None:
        """Note whether a letter is done with, in their order; again where that turns out otherwise."""
        self._replayed[offset] = replayed

    def progress(self) -> Progress:
        """Return how far it is, once nothing that was noted can turn out otherwise."""
        for offset, replayed in self._replayed.items():
            if not replayed and self._joined:
                self._left[-1] = range(self._left[-1].start, offset + 1)
            elif not replayed:
                self._left.append(range(offset, offset + 1))
            self._joined = not replayed
        self._replayed.clear()
        return self.known.advanced(self.position, self._reasons, self._left)
