"""Dead letters -> the records that they were, a checkpoint now and then: one call of `clip-worker replay`."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import click
from confluent_kafka import KafkaError, Message
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from worker.cli.dead_letters import Letter, read_letter
from worker.cli.outlets import Outlet, is_refusal
from worker.cli.progress import Passage, Progress
from worker.cli.tally import Fate, Place, Tally
from worker.errors import DrainTimeout, KafkaSetupError
from worker.records import Record

# Whichever comes first: what a kill makes the next call send again, and what a commit may have to name as left.
_CHECKPOINT_LETTERS = 100
_CHECKPOINT_S = 1.0


class Letters(Protocol):
    """What is on the dead-letter topic, see `DeadLetters`."""

    total: int
    ends: Mapping[int, int]

    def __iter__(self) -> Iterator[Message | None]:
        """Yield each record, and None now and then while none comes."""


class Stop(Protocol):
    """Whether somebody has asked to stop, and whether the time for that is over."""

    @property
    def requested(self) -> bool:
        """Return whether to send no more."""

    @property
    def is_overdue(self) -> bool:
        """Return whether to wait no more either."""


class Replayer:
    """One call: every letter in its turn, and a checkpoint now and then.

    Guarantee: progress is committed only after every letter up to it is acknowledged or refused. `uncommitted` are
    the letters that were sent since, so that the next call sends them again.
    """

    def __init__(
        self,
        letters: Letters,
        original: Callable[[Record, str], bytes | None],
        outlet: Outlet,
        topics: Mapping[str, int],
        progress: Mapping[int, Progress],
        reasons: Collection[str],
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin where the progress of each partition is.

        `topics` are the partitions that each topic has; `original` fetches the value of a record of this SHA-256.
        """
        self.tally = Tally()
        self.uncommitted: dict[Place, None] = {}
        self._letters = letters
        self._original = original
        self._outlet = outlet
        self._topics = topics
        self._passages = {partition: Passage(each, reasons) for partition, each in progress.items()}
        self._stop = stop
        self._clock = clock
        self._failure: KafkaError | None = None
        self._since_checkpoint = 0
        self._checkpoint_s = self._clock()

    def run(self) -> None:
        """Replay until the topic's end or a signal.

        Raises: `KafkaSetupError`, and `ClickException` where no more can be noted of letters that are refused.
        """
        columns = TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with ProgressBar(*columns) as bar:
            task = bar.add_task("", total=self._letters.total)
            for message in self._letters:
                if message is not None:
                    self._take(message)
                    bar.advance(task)
                if self._stop.requested:
                    break
                if self._is_due() and not self._checkpoint() and self.tally.total(Fate.REFUSED):
                    raise click.ClickException(
                        "too many letters are refused to note each: mend what refuses them, and call again"
                    )
            else:
                bar.update(task, completed=self._letters.total)
                for partition, end in self._letters.ends.items():
                    self._passages[partition].position = max(self._passages[partition].position, end)
            self._checkpoint()

    def _take(self, message: Message) -> None:
        partition, offset = message.partition() or 0, message.offset() or 0
        passage = self._passages[partition]
        letter = read_letter(message)
        if letter is None:
            self.tally.foreign += 1
        elif (fate := passage.fate(letter.reason, offset)) is not None:
            self.tally.count(letter.reason, fate)
        else:
            self._since_checkpoint += 1
            self._replay(letter)
        passage.position = offset + 1

    def _replay(self, letter: Letter) -> None:
        place, record = (letter.partition, letter.offset), letter.record
        if record.topic not in self._topics:
            self._refuse(letter, f"no such topic, or no right to see it: {record.topic}")
            return
        self._passages[letter.partition].note(letter.offset, replayed=True)
        if letter.omitted_sha256 is not None:
            is_there = record.partition < self._topics[record.topic]
            value = self._original(record, letter.omitted_sha256) if is_there else None
            if value is None:
                self.tally.count(letter.reason, Fate.GONE)
                self.tally.name(f"written without the value, which is gone from {record.topic}", place)
                return
            record = replace(record, value=value)
        self.uncommitted[place] = None
        note = partial(self._note, letter)
        if not self._outlet.send(record, note):
            self._settle()
            if not self._outlet.send(record, note):
                self._refuse(letter, "larger than the producer's queue.buffering.max.kbytes")

    def _note(self, letter: Letter, error: KafkaError | None) -> None:
        """Look at a delivery report."""
        if error is None:
            self.tally.count(letter.reason, Fate.REPLAYED)
        elif is_refusal(error):
            self._refuse(letter, f"refused by {letter.record.topic}, {error.str()}")
        else:
            self._failure = error

    def _refuse(self, letter: Letter, said: str) -> None:
        place = (letter.partition, letter.offset)
        self._passages[letter.partition].note(letter.offset, replayed=False)
        self.uncommitted.pop(place, None)
        self.tally.count(letter.reason, Fate.REFUSED)
        self.tally.name(said, place)

    def _is_due(self) -> bool:
        is_full = self._since_checkpoint >= _CHECKPOINT_LETTERS
        return is_full or self._clock() - self._checkpoint_s >= _CHECKPOINT_S

    def _checkpoint(self) -> bool:
        """Commit how far it is; return whether there is room for more letters that are refused."""
        self._settle()
        room = self._outlet.commit({partition: passage.progress() for partition, passage in self._passages.items()})
        self.uncommitted.clear()
        self._since_checkpoint = 0
        self._checkpoint_s = self._clock()
        return room

    def _settle(self) -> None:
        """Wait until all that was sent is acknowledged or refused.

        Raises: `KafkaSetupError`, and `DrainTimeout` where a signal has come and the time to stop is over.
        """
        while not self._outlet.flush():
            if self._stop.is_overdue:
                raise DrainTimeout(f"{len(self.uncommitted)} letters were sent and are not acknowledged")
        if self._failure is not None:
            raise KafkaSetupError(f"the brokers don't acknowledge what is sent: {self._failure.str()}")
