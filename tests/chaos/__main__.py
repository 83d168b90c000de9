"""`python -m tests.chaos`, or `make chaos`: the long run. Prints the figures; ends with 1 where one is off."""

import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.chaos.cluster import Cluster, running_cluster
from tests.chaos.driver import LOGS, Plan, Run, Say, drive
from tests.chaos.figures import Figure, memory_of_large_records, memory_of_small_records, recovery, throughput
from tests.chaos.members import PROTOCOLS, Changes, ChangesRun, change_members
from tests.chaos.models import INSTANT, REAL
from tests.chaos.verifier import DELIVERIES

LARGE_RECORDS = 200
BACKLOG = 4_000
REAL_COUNTS = (800, 6, 2)  # records, kills and bounces of the run with the real model


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done, and by which schedule."""

    records: int
    kills: int
    bounces: int
    changes: int
    rounds: int
    small_records: int
    seed: int


def _faults(cluster: Cluster, size: Size, say: Say) -> Iterator[Figure]:
    for delivery in DELIVERIES:
        yield from faults(drive(cluster, Plan(delivery, size.records, size.kills, size.bounces, size.seed), say))


def _real_model(cluster: Cluster, size: Size, say: Say) -> Iterator[Figure]:
    for delivery in DELIVERIES:
        yield from faults(drive(cluster, Plan(delivery, *REAL_COUNTS, size.seed, REAL), say))


def _membership(cluster: Cluster, size: Size, say: Say) -> Iterator[Figure]:
    for delivery, protocol in product(DELIVERIES, PROTOCOLS):
        yield from membership(change_members(cluster, Changes(delivery, protocol, size.changes, size.seed), say))


def _memory(cluster: Cluster, size: Size, say: Say) -> Iterator[Figure]:
    yield from memory_of_large_records(cluster, LARGE_RECORDS, say)
    yield from memory_of_small_records(cluster, size.small_records, say)


PARTS: Mapping[str, Callable[[Cluster, Size, Say], Iterable[Figure]]] = {
    "faults": _faults,
    "real-model": _real_model,
    "membership": _membership,
    "recovery": lambda cluster, size, say: recovery(cluster, size.rounds, say),
    "throughput": lambda cluster, _, say: throughput(cluster, BACKLOG, say),
    "memory": _memory,
}


@click.command()
@click.option("--records", default=100_000, show_default=True, help="records of each run with faults")
@click.option("--kills", default=50, show_default=True, help="workers killed, terminated or stopped in each")
@click.option("--bounces", default=20, show_default=True, help="nodes taken away in each")
@click.option("--changes", default=120, show_default=True, help="members that join or leave, under each protocol")
@click.option("--rounds", default=10, show_default=True, help="of the recoveries, whose medians are taken")
@click.option("--small-records", default=300_000, show_default=True, help="over which memory may not grow")
@click.option("--seed", type=int, help="of the schedules; a new one unless set")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="do only this; may be repeated")
def main(seed: int | None, parts: tuple[str, ...], **counts: int) -> None:
    """Prove the guarantees on a cluster of three nodes."""
    seed = random.randrange(10_000) if seed is None else seed  # noqa: S311 - a schedule, no secret
    console, begun_s = Console(), time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=LOGS / "members.log", filemode="w", format=_LOG_FORMAT, level=logging.INFO)

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - begun_s:7.1f} s  {text}", highlight=False)

    say(f"seed {seed}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, running_cluster(Path(folder)) as cluster:
        say(cluster.route)
        for part in parts or PARTS:
            for figure in PARTS[part](cluster, Size(**counts, seed=seed), say):
                say(f"{figure.name}: {figure.value}")
                figures.append(figure)
    console.print(_table(figures))
    sys.exit(0 if all(figure.holds for figure in figures) else 1)


def faults(run: Run) -> Sequence[Figure]:
    """Return the figures of a run with faults."""
    plan, report = run.plan, run.report
    model = "" if plan.model is INSTANT else f" with the {plan.model.name} model"
    name = (
        f"{plan.delivery}{model}: {plan.records} records, {plan.kills} kills, {plan.bounces} bounces, seed {plan.seed}"
    )
    shown = (
        f"{report.embeddings} embeddings, {report.dead_letters} dead letters, {report.tombstones} tombstones, "
        f"{report.nothing} skipped; {run.rewinds} rewinds, {run.sessions_ended} sessions ended"
    )
    repeated = f"{report.duplicates} repeated, {report.late} of them behind a later one"
    return (
        Figure(name, "; ".join([shown, *run.problems]), "every record accounted for", not run.problems),
        Figure(f"{plan.delivery}: repetitions", repeated, run.bound, report.duplicates <= run.allowed_duplicates),
    )


def membership(run: ChangesRun) -> Sequence[Figure]:
    """Return the figures of a run with members that join and leave."""
    changes = run.changes
    name = f"{changes.delivery}: {changes.changes} changes under {changes.protocol}, seed {changes.seed}"
    shown = f"{run.report.records} records, {run.report.duplicates} repeated, {run.lost_sessions} sessions lost"
    bound = "all accounted for, none repeated unless sessions are lost"
    return (Figure(name, "; ".join([shown, *run.problems]), bound, not run.problems),)


def _table(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "measured", "bound", "", show_lines=True)
    for figure in figures:
        table.add_row(figure.name, figure.value, figure.bound, "[green]holds" if figure.holds else "[red]OFF")
    return table


_LOG_FORMAT = "%(asctime)s %(threadName)s %(levelname)s %(name)s: %(message)s"

if __name__ == "__main__":
    main()
