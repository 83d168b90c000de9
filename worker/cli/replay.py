"""`clip-worker replay`: dead letters back to their input topic, all or by reason, each once over all calls."""

import os
import signal
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Self

import click
from confluent_kafka import KafkaError, Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from schemas.dead_letter import Reason
from worker.cli.dead_letters import DeadLetters, Letter, Originals, read_letter
from worker.cli.options import settings_options
from worker.cli.outlets import DryRun, KafkaOutlet, Outlet, ReplayGroup, is_refusal
from worker.cli.progress import Passage, Progress
from worker.cli.tally import Fate, Place, Tally, name_places
from worker.clients import tool_admin
from worker.errors import DrainTimeout, KafkaSetupError
from worker.records import Record
from worker.settings import read_settings
from worker.topics import list_topics

# Whichever comes first: what a kill makes the next call send again, and what a commit may have to name as left.
_CHECKPOINT_LETTERS = 100
_CHECKPOINT_S = 1.0

_SIGNAL_EXIT = 130


@click.command("replay")
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice([reason.value for reason in Reason]),
    metavar="REASON",
    help="only the letters of this reason; may be given several times",
)
@click.option("--again", is_flag=True, help="also what earlier calls have replayed, from the beginning")
@click.option("--dry-run", is_flag=True, help="count what would be replayed; write nothing")
@settings_options("bootstrap_servers", "group_id", "dead_letter_topic", "kafka")
def command(*, again: bool, dry_run: bool, reasons: tuple[str, ...] = (), **flags: object) -> None:
    """Write dead letters back to the topics that they came from, as the records that they were.

    All letters that are on the dead-letter topic now, or those of some reasons; each once over all calls, whose
    progress is in the consumer group GROUP_ID-replay. What can't be written back is named, and stays.
    """
    settings = read_settings(flags)
    admin = tool_admin(settings)
    topics = list_topics(admin, settings)
    topic = settings.dead_letter_topic
    if topic not in topics:
        raise KafkaSetupError(f"no such topic at {settings.bootstrap_servers}: {topic}")
    group = ReplayGroup(settings, topic)
    known = group.read(topics[topic])
    if not known:
        click.echo(f"group {group.name} knows of no earlier replay: from the beginning of {topic}")
    starts = {partition: known.get(partition, Progress()) for partition in range(topics[topic])}
    if again:
        starts = {partition: progress.forgetting(reasons) for partition, progress in starts.items()}
    with _Stop(settings.drain_timeout_s) as stop:
        outlet = DryRun() if dry_run else KafkaOutlet(settings, topics, group)
        letters = DeadLetters(settings, admin, {partition: each.offset for partition, each in starts.items()})
        replay = _Replay(letters, Originals(settings), outlet, topics, starts, reasons, stop)
        try:
            replay.run()
        except DrainTimeout as error:
            click.echo(f"stopped before all was done: {error}", err=True)
        finally:
            _show(replay, topic, "to replay" if dry_run else "replayed")
    count = replay.tally.total(Fate.REPLAYED)
    click.echo(f"{count} dead letters " + ("to replay; nothing was written" if dry_run else "replayed"))
    _end(replay.tally, stop)


def _show(replay: "_Replay", topic: str, replayed: str) -> None:
    """Print what became of the letters, whatever ended the call."""
    if replay.tally.counts:
        Console().print(replay.tally.table(replayed))
    for line in replay.tally.lines(topic):
        click.echo(line)
    if replay.uncommitted:
        places = name_places(topic, replay.uncommitted)
        click.echo(f"may be twice, for the next call sends them again: {places}")


def _end(tally: Tally, stop: "_Stop") -> None:
    """End as it went."""
    if stop.requested:
        click.echo("stopped by a signal: the next call goes on from here", err=True)
        raise SystemExit(_SIGNAL_EXIT)
    wrong = {
        "refused, and stay to be replayed": tally.total(Fate.REFUSED),
        "written without a value that is gone": tally.total(Fate.GONE),
    }
    if any(wrong.values()):
        said = "; ".join(f"{count} were {what}" for what, count in wrong.items() if count)
        raise click.ClickException(f"{said}: named above")


class _Stop:
    """Whether SIGTERM or SIGINT has come. A second one ends the process at once."""

    def __init__(self, drain_timeout_s: float) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._deadline_s: float | None = None
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    @property
    def requested(self) -> bool:
        return self._deadline_s is not None

    @property
    def is_overdue(self) -> bool:
        return self._deadline_s is not None and time.monotonic() > self._deadline_s

    def __enter__(self) -> Self:
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        if self.requested:
            os._exit(_SIGNAL_EXIT)
        self._deadline_s = time.monotonic() + self._drain_timeout_s


class _Replay:
    """One call: every letter in its turn, and a checkpoint now and then.

    Guarantee: progress is committed only after every letter up to it is acknowledged or refused. `uncommitted` are
    the letters that were sent since, so that the next call sends them again.
    """

    def __init__(
        self,
        letters: DeadLetters,
        originals: Originals,
        outlet: Outlet,
        topics: Mapping[str, int],
        starts: Mapping[int, Progress],
        reasons: Collection[str],
        stop: _Stop,
    ) -> None:
        self.tally = Tally()
        self.uncommitted: dict[Place, None] = {}
        self._letters = letters
        self._originals = originals
        self._outlet = outlet
        self._topics = topics
        self._passages = {partition: Passage(progress, reasons) for partition, progress in starts.items()}
        self._reasons = reasons
        self._stop = stop
        self._failure: KafkaError | None = None
        self._since_checkpoint = 0
        self._checkpoint_s = time.monotonic()

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
            value = self._original(record, letter.omitted_sha256)
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

    def _original(self, record: Record, sha256: str) -> bytes | None:
        return self._originals.value(record, sha256) if record.partition < self._topics[record.topic] else None

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
        return is_full or time.monotonic() - self._checkpoint_s >= _CHECKPOINT_S

    def _checkpoint(self) -> bool:
        """Commit how far it is; return whether there is room for more letters that are refused."""
        self._settle()
        room = self._outlet.commit({partition: passage.progress() for partition, passage in self._passages.items()})
        self.uncommitted.clear()
        self._since_checkpoint = 0
        self._checkpoint_s = time.monotonic()
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
