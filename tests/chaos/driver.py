"""A run of three workers on a cluster, with a seeded schedule of faults: `drive` does it and accounts for it.

One lane of events: a worker is killed, terminated or stopped beyond its session; a node of the cluster is taken away by
its role, hard or clean, and comes back after the next event. Records are produced meanwhile, a share for each event.
"""

import math
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from tests.broker.kafka import Brokers, Topics, create_topic, wait_until
from tests.broker.processes import Worker, group_of, started_worker
from tests.chaos.cluster import NODES, Cluster
from tests.chaos.forks import STACKS, launch_fork
from tests.chaos.models import INSTANT, Model
from tests.chaos.stream import Stream
from tests.chaos.verifier import Delivery, Outcome, Report, Sample, most_within, read_log, verify
from tests.chaos.watch import Watch, keep_sampling
from worker.errors import DrainTimeout

WORKERS = 3
PARTITIONS = 12
CHECKPOINT_S = 0.5
IN_FLIGHT = 64  # the worker's default: MAX_IMAGES_PER_RECORD, with batches of 8
SESSION_S = 6.0
DRAIN_S = 30.0  # the worker's default
MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # what `clip-worker topics` makes takes the largest picture too
COMMITTED_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60
LOGS = Path(".cache/chaos")

WorkerEvent = Literal["SIGKILL", "SIGTERM", "SIGSTOP"]
Role = Literal["leader", "group coordinator", "transaction coordinator", "controller"]
Say = Callable[[str], None]

_WORKER_EVENTS: tuple[WorkerEvent, ...] = ("SIGKILL", "SIGTERM", "SIGSTOP")
_ROLES: tuple[Role, ...] = ("leader", "group coordinator", "controller", "transaction coordinator")
_LARGEST_PAUSE_S = 2.0
_SHARE_S = 3.0

_QUICK = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"}
_QUICK_TRANSACTIONS = {"transaction.timeout.ms": "10000", "delivery.timeout.ms": "9000"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run consists of; `kills` counts the events of workers, `bounces` those of nodes."""

    delivery: Delivery
    records: int
    kills: int
    bounces: int
    seed: int
    model: Model = INSTANT


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it."""

    plan: Plan
    report: Report
    unclean_ends: int
    allowed_duplicates: int
    bound: str
    rewinds: int
    sessions_ended: int
    problems: tuple[str, ...]


def make_topics(cluster: Brokers, partitions: int = PARTITIONS, replicas: int = NODES) -> Topics:
    """Make the topics of a run; the outputs are stamped when they are written."""
    topics = Topics.named_anew()
    large = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    stamped = large | {"message.timestamp.type": "LogAppendTime"}
    for topic, config in ((topics.input, large), (topics.output, stamped), (topics.dead_letters, stamped)):
        create_topic(cluster.bootstrap_servers, topic, partitions, config, replicas)
    return topics


def quick(delivery: Delivery) -> Mapping[str, str]:
    """Return the properties of clients that are quick to be missed."""
    return _QUICK | (_QUICK_TRANSACTIONS if delivery == "exactly-once" else {})


def flags(delivery: Delivery) -> tuple[str, ...]:
    """Return the flags of a worker that is quick to be missed."""
    kafka = [part for name, value in quick(delivery).items() for part in ("--kafka", f"{name}={value}")]
    return ("--delivery", delivery, "--checkpoint-interval-s", str(CHECKPOINT_S), *kafka)


@dataclass(slots=True)
class _Drive:
    """The state of a run: belongs to the thread that drives it, `finished` aside."""

    cluster: Cluster
    plan: Plan
    topics: Topics
    watch: Watch
    stack: ExitStack
    say: Say
    random: random.Random
    workers: list[Worker] = field(default_factory=list)  # those that are there, one a slot
    ended: list[Worker] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unclean_ends: int = 0
    down: int | None = None
    disturbed_s: float = -math.inf  # when a node last went or came
    finished: threading.Event = field(default_factory=threading.Event)

    def start_worker(self, slot: int) -> Worker:
        """Start one; half of them have a stable transactional id, so that a crash's transaction ends at the restart."""
        own = flags(self.plan.delivery)
        if self.plan.delivery == "exactly-once" and self.random.random() < 0.5:
            own += ("--transactional-id", f"{self.topics.output}-{slot}")
        model = self.plan.model
        own += model.flags
        worker = started_worker(self.cluster, self.topics, *own, module=model.module, launch=launch_fork)
        return self.stack.enter_context(worker)

    def pause(self, longest_s: float, shortest_s: float = 0.0) -> None:
        self.finished.wait(self.random.uniform(shortest_s, longest_s))

    def replace(self, slot: int) -> None:
        self.ended.append(self.workers[slot])
        self.workers[slot] = self.start_worker(slot)

    def look_after_workers(self) -> None:
        """Start those again that ended by themselves: none may."""
        for slot, worker in enumerate(self.workers):
            if worker.exit_code is not None:
                self.problems.append(f"worker {worker.pid} ended by itself with {worker.exit_code}")
                self.unclean_ends += 1
                self.replace(slot)

    def act_on_worker(self, event: WorkerEvent) -> None:
        slot = self.random.randrange(WORKERS)
        worker = self.workers[slot]
        self.say(f"{event} to worker {worker.pid}")
        match event:
            case "SIGKILL":
                worker.kill()
                self.unclean_ends += 1
            case "SIGTERM":
                self.end(worker)
            case "SIGSTOP":
                worker.send(signal.SIGSTOP)
                self.pause(SESSION_S + 4, SESSION_S + 1)
                worker.send(signal.SIGCONT)
                self.unclean_ends += 1
                return
        self.replace(slot)

    def end(self, worker: Worker) -> None:
        starting = "http on port" not in worker.log  # not even the handler of the signal may be there
        try:
            code = worker.stop(timeout_s=STOP_TIMEOUT_S)
        except AssertionError:
            code = self.kill_hanging(worker)
        if code == 0 or (starting and code == -signal.SIGTERM):
            return
        self.unclean_ends += 1
        # A stop may run out of its time where what it commits to is away.
        if code != DrainTimeout.exit_code or not self.is_disturbed:
            self.problems.append(f"worker {worker.pid} ended with {code} after SIGTERM")

    @property
    def is_disturbed(self) -> bool:
        """Whether a node is away, or was lately."""
        return self.down is not None or time.monotonic() - self.disturbed_s < DRAIN_S

    def kill_hanging(self, worker: Worker) -> int:
        """Let its log say what its threads are at, first."""
        worker.send(STACKS)
        worker.wait_until_it_says("most recent call first", timeout_s=STOP_TIMEOUT_S)
        worker.kill()
        return -signal.SIGKILL

    def act_on_cluster(self, role: Role, *, hard: bool) -> None:
        self.bring_back()
        self.down = self.node_in(role)
        self.say(f"{'kill' if hard else 'stop'} of node {self.down}, the {role}")
        (self.cluster.kill if hard else self.cluster.stop)(self.down)
        self.disturbed_s = time.monotonic()

    def node_in(self, role: Role) -> int:
        match role:
            case "leader":
                return self.cluster.leader_of(self.topics.output, self.random.randrange(PARTITIONS))
            case "group coordinator":
                return self.cluster.coordinator_of(group_of(self.topics))
            case "transaction coordinator":
                return self.cluster.transaction_coordinator_of(f"{self.topics.output}-{self.random.randrange(WORKERS)}")
            case "controller":
                return self.cluster.controller()

    def bring_back(self) -> None:
        if self.down is not None:
            self.cluster.start(self.down)
            self.say(f"node {self.down} is back")
            self.down, self.disturbed_s = None, time.monotonic()

    def settle(self) -> None:
        """Wait until all is committed, end the workers, and take the last sample."""
        try:
            wait_until(self.watch.everything_is_committed, COMMITTED_TIMEOUT_S, "everything is committed")
        except AssertionError as error:
            self.problems.append(str(error))
        self.look_after_workers()
        for worker in self.workers:
            self.end(worker)
        self.ended += self.workers

    @property
    def sessions_ended(self) -> int:
        return sum(worker.log.count("the session ended: ") for worker in self.ended)

    @property
    def rewinds(self) -> int:
        return sum(worker.log.count("going on from the last checkpoint") for worker in self.ended)


def drive(cluster: Cluster, plan: Plan, say: Say) -> Run:
    """Run the plan, and account for every record."""
    schedule = random.Random(plan.seed)  # noqa: S311 - a schedule, no secret
    events = _events(plan, schedule)
    topics = make_topics(cluster)
    with ExitStack() as stack:
        run = _Drive(cluster, plan, topics, Watch(cluster, topics), stack, say, schedule)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(run.finished.set)
        run.workers = [run.start_worker(slot) for slot in range(WORKERS)]
        for worker in run.workers:
            worker.wait_until_ready()
        sampling = pool.submit(keep_sampling, cluster, topics, run.finished)
        stream = Stream(cluster, topics.input, plan.seed)
        for number, event in enumerate(events, start=1):
            share = plan.records * number // len(events) - stream.sent
            sending = pool.submit(stream.send, share, schedule.uniform(0, _SHARE_S))
            run.pause(_LARGEST_PAUSE_S)
            run.look_after_workers()
            event(run)
            sending.result()
        run.bring_back()
        stream.finish()
        run.settle()
        run.finished.set()
        return _account(run, sampling.result())


def _events(plan: Plan, schedule: random.Random) -> list[Callable[[_Drive], None]]:
    def on_worker(event: WorkerEvent) -> Callable[[_Drive], None]:
        return lambda run: run.act_on_worker(event)

    def on_cluster(role: Role, hard: bool) -> Callable[[_Drive], None]:  # noqa: FBT001 - a part of a schedule
        return lambda run: run.act_on_cluster(role, hard=hard)

    roles = _ROLES if plan.delivery == "exactly-once" else _ROLES[:-1]
    bounces = [(role, hard) for hard in (True, False) for role in roles]
    events = [on_worker(event) for event in islice(cycle(_WORKER_EVENTS), plan.kills)]
    events += [on_cluster(*bounce) for bounce in islice(cycle(bounces), plan.bounces)]
    schedule.shuffle(events)
    return events


def _account(run: _Drive, samples: Sequence[Sample]) -> Run:
    plan, watch = run.plan, run.watch
    watch.wait_for_transactions(COMMITTED_TIMEOUT_S)
    log = read_log(run.cluster, run.topics, [*samples, watch.sample()], watch.input_ends(), plan.model)
    unclean_ends = run.unclean_ends + run.sessions_ended
    allowed = allowed_duplicates(plan.delivery, unclean_ends, log.outcomes)
    bound = f"{allowed}: {unclean_ends} unclean ends × the records in {CHECKPOINT_S + 1:g} s and in flight"
    report = verify(log, allowed)
    problems = [*run.problems, *report.problems]
    if len(log.inputs) != plan.records:
        problems.append(f"{len(log.inputs)} records on the input topic, {plan.records} were sent")
    _keep_logs(run)
    return Run(plan, report, unclean_ends, allowed, bound, run.rewinds, run.sessions_ended, tuple(problems))


def allowed_duplicates(delivery: Delivery, unclean_ends: int, outcomes: Sequence[Outcome]) -> int:
    """Return how many repetitions there may be: at-least-once repeats what came since the checkpoint."""
    if delivery == "exactly-once":
        return 0
    return unclean_ends * (most_within(outcomes, CHECKPOINT_S + 1) + IN_FLIGHT)


def _keep_logs(run: _Drive) -> None:
    folder = LOGS / f"{run.plan.delivery}-{run.plan.model.name}-{run.plan.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for worker in run.ended:
        (folder / f"worker-{worker.pid}.log").write_text(worker.log)
    run.say(f"the workers' logs are kept in {folder}")
