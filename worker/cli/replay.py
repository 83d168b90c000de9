"""`clip-worker replay`: dead letters back to their input topic, all or by reason, each once over all calls."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from types import FrameType
from typing import Self

import click
from rich.console import Console

from schemas.dead_letter import Reason
from worker.cli.dead_letters import DeadLetters, Originals
from worker.cli.options import settings_options
from worker.cli.outlets import DryRun, KafkaOutlet, ReplayGroup
from worker.cli.progress import Progress
from worker.cli.replayer import Replayer
from worker.cli.tally import Fate, Tally, name_places
from worker.clients import tool_admin
from worker.errors import DrainTimeout
from worker.settings import read_settings
from worker.topics import list_topics, require

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
    require(topics, [topic], settings)
    with ExitStack() as stack:
        stop = stack.enter_context(_Stop(settings.drain_timeout_s))
        group = ReplayGroup(settings, topic)
        progress = _progress(group, topic, topics[topic])
        if again:
            progress = {partition: each.forgetting(reasons) for partition, each in progress.items()}
        starts = {partition: each.offset for partition, each in progress.items()}
        letters = stack.enter_context(closing(DeadLetters(settings, admin, starts)))
        originals = stack.enter_context(closing(Originals(settings)))
        outlet = DryRun() if dry_run else KafkaOutlet(settings, topics, group)
        replayer = Replayer(letters, originals.value, outlet, topics, progress, reasons, stop)
        try:
            replayer.run()
        except DrainTimeout as error:
            click.echo(f"stopped before all was done: {error}", err=True)
        finally:
            _show(replayer, topic, "to replay" if dry_run else "replayed")
    count = replayer.tally.total(Fate.REPLAYED)
    click.echo(f"{count} dead letters " + ("to replay; nothing was written" if dry_run else "replayed"))
    _end(replayer.tally, stop)


def _progress(group: ReplayGroup, topic: str, partitions: int) -> Mapping[int, Progress]:
    """Return how far each partition is replayed, and say so where nothing is known of any."""
    known = group.read(partitions)
    if not known:
        click.echo(f"group {group.name} knows of no earlier replay: from the beginning of {topic}")
    return {partition: known.get(partition, Progress()) for partition in range(partitions)}


def _show(replayer: Replayer, topic: str, replayed: str) -> None:
    """Print what became of the letters, whatever ended the call."""
    if replayer.tally.counts:
        Console().print(replayer.tally.table(replayed))
    for line in replayer.tally.lines(topic):
        click.echo(line)
    if replayer.uncommitted:
        places = name_places(topic, replayer.uncommitted)
        click.echo(f"may be twice, for the next call sends them again: {places}")


def _end(tally: Tally, stop: "_Stop") -> None:
    """End as it went."""
    if stop.requested:
        click.echo("stopped by a signal: the next call goes on from here", err=True)
        raise SystemExit(_SIGNAL_EXIT)
    wrong = {"refused, and still to be replayed": tally.total(Fate.REFUSED), "value gone": tally.total(Fate.GONE)}
    said = "; ".join(f"{what}: {count}" for what, count in wrong.items() if count)
    if said:
        raise click.ClickException(f"{said}; named above")


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
