"""Members of a group that join and leave, each as soon as the group has reacted to the one before.

A member is the worker's own wiring in a thread of this process, with an encoder that is there already: starting one
costs nothing, so there can be many changes. All ends are clean, so nothing may be written twice, but for what a lost
session had not committed.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry

from tests.broker.instant_worker import InstantEncoder
from tests.broker.kafka import Brokers, Topics, wait_until
from tests.broker.processes import group_of
from tests.chaos.cluster import Cluster
from tests.chaos.driver import (
    CHECKPOINT_S,
    COMMITTED_TIMEOUT_S,
    PARTITIONS,
    Say,
    allowed_duplicates,
    make_topics,
    quick,
)
from tests.chaos.stream import Stream
from tests.chaos.verifier import Delivery, Report, read_log, verify
from tests.chaos.watch import Watch, keep_sampling
from worker.health import Health
from worker.metrics import Metrics
from worker.records import TopicLimits
from worker.sessions import Sessions
from worker.settings import Settings

Protocol = Literal["cooperative-sticky", "range", "consumer"]
PROTOCOLS: tuple[Protocol, ...] = ("cooperative-sticky", "range", "consumer")

MOST_MEMBERS = 5
RECORDS_A_CHANGE = 60
REACTION_TIMEOUT_S = 45
LEAVE_TIMEOUT_S = 60

_CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms")


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run consists of."""

    delivery: Delivery
    protocol: Protocol
    changes: int
    seed: int


@dataclass(frozen=True, slots=True)
class ChangesRun:
    """What came of it."""

    changes: Changes
    report: Report
    lost_sessions: int
    problems: tuple[str, ...]


class Member:
    """A worker in a thread; joins when it is made."""

    def __init__(self, brokers: Brokers, topics: Topics, changes: Changes, number: int) -> None:
        self.failure: BaseException | None = None
        self._registry = CollectorRegistry()
        self._stop = threading.Event()
        settings = _settings(brokers, topics, changes, number)
        self._limits = {topic: TopicLimits() for topic in (topics.output, topics.dead_letters)}
        health = Health(settings.stall_timeout_s)
        self._sessions = Sessions(settings, InstantEncoder(), Metrics(self._registry), health)
        self._thread = threading.Thread(target=self._work, name=f"member-{number}", daemon=True)
        self._thread.start()

    @property
    def partitions(self) -> int:
        """How many it owns."""
        return int(self._registry.get_sample_value("clip_worker_assigned_partitions") or 0)

    @property
    def lost_sessions(self) -> int:
        """How many sessions a new one followed: brokers on a machine that is too slow lose members."""
        return int(self._registry.get_sample_value("clip_worker_sessions_total") or 1) - 1

    def leave(self) -> None:
        """Stop cleanly, and wait for the end."""
        self._stop.set()
        self._thread.join(LEAVE_TIMEOUT_S)
        assert not self._thread.is_alive(), f"{self._thread.name} didn't leave within {LEAVE_TIMEOUT_S} s"

    def _work(self) -> None:
        try:
            self._sessions.hold(self._stop, self._limits)
        except BaseException as error:  # noqa: BLE001 - the thread boundary: looked at by the test
            self.failure = error


def change_members(cluster: Cluster, changes: Changes, say: Say) -> ChangesRun:
    """Let members join and leave while records are produced, and account for every record."""
    schedule = random.Random(changes.seed)  # noqa: S311 - a schedule, no secret
    topics = make_topics(cluster)
    stream = Stream(cluster, topics.input, changes.seed)
    watch = Watch(cluster, topics)
    finished = threading.Event()
    members = [Member(cluster, topics, changes, 0)]
    left: list[Member] = []
    problems = []
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(finished.set)
        sampling = pool.submit(keep_sampling, cluster, topics, finished)
        try:
            _react(members)
            for number in range(1, changes.changes + 1):
                sending = pool.submit(stream.send, RECORDS_A_CHANGE, 0.5)
                if len(members) == 1 or (len(members) < MOST_MEMBERS and schedule.random() < 0.5):
                    members.append(Member(cluster, topics, changes, number))
                else:
                    left.append(members.pop(schedule.randrange(len(members))))
                    left[-1].leave()
                _react(members)
                sending.result()
            stream.finish()
            wait_until(watch.everything_is_committed, COMMITTED_TIMEOUT_S, "everything is committed")
        except AssertionError as error:
            problems.append(str(error))
        for member in members:
            member.leave()
        problems += [f"a member failed: {it.failure!r}" for it in [*left, *members] if it.failure is not None]
        finished.set()
        watch.wait_for_transactions(COMMITTED_TIMEOUT_S)
        samples = [*sampling.result(), watch.sample()]
    log = read_log(cluster, topics, samples, watch.input_ends())
    lost_sessions = sum(it.lost_sessions for it in [*left, *members])
    report = verify(log, allowed_duplicates(changes.delivery, lost_sessions, log.outcomes))
    say(f"{changes.changes} changes under {changes.protocol}, {changes.delivery}: {report.records} records")
    return ChangesRun(changes, report, lost_sessions, (*problems, *report.problems))


def _react(members: list[Member]) -> None:
    """Wait until every member has a share, and all partitions are given out."""
    wait_until(
        lambda: all(it.partitions for it in members) and sum(it.partitions for it in members) == PARTITIONS,
        REACTION_TIMEOUT_S,
        "the group gives its partitions to all members",
    )


def _settings(brokers: Brokers, topics: Topics, changes: Changes, number: int) -> Settings:
    kafka = dict(quick(changes.delivery))
    if changes.protocol == "consumer":
        kafka = {name: value for name, value in kafka.items() if name not in _CLASSIC_ONLY}
        kafka["group.protocol"] = "consumer"
    else:
        kafka |= {"heartbeat.interval.ms": "500", "partition.assignment.strategy": changes.protocol}
    member = f"{group_of(topics)}-{number}"
    return Settings(
        bootstrap_servers=brokers.bootstrap_servers,
        group_id=group_of(topics),
        input_topic=topics.input,
        output_topic=topics.output,
        dead_letter_topic=topics.dead_letters,
        delivery=changes.delivery,
        checkpoint_interval_s=CHECKPOINT_S,
        transactional_id=member,
        prepare_threads=1,
        kafka=kafka | {"client.id": member},
    )
