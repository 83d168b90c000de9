"""A broker and workers on cores of their own, and rounds of work for them. Linux only: cores and CPU are its accounts.

A crew is the workers of one group on topics of their own. Outside its rounds it is suspended: while its topic is
filled, and while another crew is measured, so that many can be measured in turn without starting again. Workers are
forked from a process that has imported everything. Times of output are those at which the broker wrote it.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tests.benchmarks.alone import Alone, alone
from tests.benchmarks.forks import Cores, forked, start_server
from tests.broker.kafka import Kafka, Topics, create_topic, delete_records, start_kafka
from tests.broker.processes import Worker, group_of, started_worker

PARTITIONS = 12
IN_TIME_S = 120
REAL = ("worker.cli.run",)

_WARM_UP_RECORDS = 12
_FLUSHED_RECORDS = 500
_NS = 1e9
_LEAST_CHECKPOINT_S = 0.2  # a round ends with one: a smoke doesn't wait for the default of a second
# A crew that is suspended for minutes stays in its group, and isn't taken for hung.
_PATIENT = (
    *("--kafka", "session.timeout.ms=1500000", "--kafka", "max.poll.interval.ms=3600000"),
    *("--stall-timeout-s", "3600"),
)
# What is deleted leaves the disk within seconds: a run has 33 GB of records.
_DELETES_SOON = {"log.retention.check.interval.ms": "5000"}
_SMALL_FILES = {"segment.bytes": str(8 * 2**20), "file.delete.delay.ms": "1000"}
_OUTPUT = {**_SMALL_FILES, "message.timestamp.type": "LogAppendTime"}

Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Round:
    """What a crew did: when the broker wrote each output, sorted, and the CPU of the workers' threads by name."""

    appended_ms: Sequence[int]
    cpu_s: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Return the time from the first output to the last."""
        return max(1, self.appended_ms[-1] - self.appended_ms[0]) / 1000

    @property
    def rate(self) -> float:
        """Return records a second, less the first and the last tenth: the start and the drain."""
        times = self.appended_ms
        begun_ms, ended_ms = times[len(times) // 10], times[len(times) * 9 // 10]
        done = sum(begun_ms < each <= ended_ms for each in times)
        return done / max(1, ended_ms - begun_ms) * 1000

    def cpu_us(self, name: str = "") -> float:
        """Return microseconds of CPU a record: of all threads, or of those whose name begins so."""
        return sum(spent_s for thread, spent_s in self.cpu_s.items() if thread.startswith(name)) / self.records * 1e6

    @property
    def records(self) -> int:
        return len(self.appended_ms)


@dataclass(frozen=True, slots=True)
class Stage:
    """A broker on some of the cores, with this process; the others are for workers."""

    kafka: Kafka
    broker_cores: Cores
    worker_cores: Cores
    alone: Alone
    scale: float

    @contextmanager
    def crew(
        self,
        module: tuple[str, ...],
        *flags: str,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        partitions: int = PARTITIONS,
    ) -> Iterator["Crew"]:
        """Start workers, and kill them at the end. They are ready, and suspended, after `Crew.warm_up`."""
        topics = _make_topics(self.kafka, partitions)
        own = (
            *("--prepare-threads", str(len(self.worker_cores))),
            *("--checkpoint-interval-s", str(max(_LEAST_CHECKPOINT_S, min(1.0, self.scale)))),
        )
        with ExitStack() as stack:
            started = [
                stack.enter_context(
                    started_worker(
                        self.kafka,
                        topics,
                        *_PATIENT,
                        *own,
                        *flags,
                        module=module,
                        env=env,
                        launch=forked(self.worker_cores),
                    )
                )
                for _ in range(workers)
            ]
            yield stack.enter_context(Crew(self.kafka, topics, started, partitions))


class Crew:
    """Workers of one group on topics of their own, suspended outside rounds."""

    def __init__(self, kafka: Kafka, topics: Topics, workers: Sequence[Worker], partitions: int) -> None:
        self.topics = topics
        self.workers = workers
        self._bootstrap_servers = kafka.bootstrap_servers
        self._partitions = partitions
        self._sent = dict.fromkeys(range(partitions), 0)
        self._unread = 0  # outputs from before the round
        self._read = dict.fromkeys(range(partitions), 0)
        # Kept, for a new one takes half a second to be of use. Neither consumer joins; the first looks at offsets, and
        # would wait for the end of a transaction if it read what is committed.
        servers = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0}
        group = {**servers, "group.id": group_of(topics)}
        self._group = Consumer({**group, "isolation.level": "read_uncommitted"})
        self._reader = Consumer({**group, "isolation.level": "read_committed", "enable.auto.commit": False})
        self._producer = Producer({**servers, "linger.ms": 5, "message.max.bytes": 100_000_000})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._group.close()
        self._reader.close()

    def warm_up(self, value: bytes) -> None:
        """Wait until the workers share the partitions, and let every thread of theirs have worked once."""
        for worker in self.workers:
            worker.wait_until_it_says(f"own {self._partitions // len(self.workers)} partitions")
        self.suspend()
        self.round(value, max(_WARM_UP_RECORDS, self._partitions))

    def round(self, value: bytes, records: int) -> Round:
        """Fill the topic with records of one value, then let the workers do them all."""
        self._fill(value, records)
        cpu_s = self._do()
        return Round(self._read_appended_ms(records), cpu_s)

    def watched_round(
        self, value: bytes, records: int, watch: Callable[[int], AbstractContextManager[Seen]]
    ) -> tuple[Round, Seen]:
        """Do the same while the first worker's process is watched."""
        self._fill(value, records)
        with watch(self.workers[0].pid) as seen:
            cpu_s = self._do()
        return Round(self._read_appended_ms(records), cpu_s), seen

    def _do(self) -> Mapping[str, float]:
        """Let the workers work until all is committed; return the seconds of CPU that they took."""
        before_s = self._cpu_s()
        with self.working():
            self.wait_until_committed()
        return {name: spent_s - before_s.get(name, 0.0) for name, spent_s in self._cpu_s().items()}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the workers work meanwhile."""
        for worker in self.workers:
            worker.send(signal.SIGCONT)
        try:
            yield
        finally:
            self.suspend()

    def suspend(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGSTOP)

    def wait_until_committed(self) -> None:
        places = [TopicPartition(self.topics.input, partition) for partition in self._sent]
        ends = {partition: end for partition, end in self._sent.items() if end}

        def everything_is_committed() -> bool:
            try:
                known = self._group.committed(places, timeout=IN_TIME_S)
            except KafkaException:  # the group's coordinator is on its way, after the first commit of all
                return False
            return {each.partition: each.offset for each in known if each.offset >= 0} == ends

        self.workers[0].wait_until(everything_is_committed, IN_TIME_S, "all is committed")

    def note_sent(self, partition: int) -> None:
        """Note a record of the input topic that was not sent by a round, nor its output read."""
        self._sent[partition] += 1
        self._unread += 1

    def peak_memory_mib(self) -> Sequence[float]:
        """Return the most that each worker's process has held in memory."""
        return [_status_kib(worker.pid, "VmHWM") / 1024 for worker in self.workers]

    def _fill(self, value: bytes, records: int) -> None:
        self._delete_earlier_rounds()
        for number in range(records):
            partition = number % self._partitions
            self._producer.produce(
                self.topics.input, value, b"%d" % number, partition=partition, on_delivery=_check_delivery
            )
            self._sent[partition] += 1
            if number % _FLUSHED_RECORDS == 0:
                self._producer.flush()
        assert self._producer.flush(IN_TIME_S) == 0, "records are not acknowledged"

    def _delete_earlier_rounds(self) -> None:
        """Delete the records that are all done, and their outputs, which are read."""
        for topic, ends in ((self.topics.input, self._sent), (self.topics.output, self._read)):
            if done := {partition: end for partition, end in ends.items() if end}:
                delete_records(self._bootstrap_servers, topic, done)

    def _cpu_s(self) -> dict[str, float]:
        spent: dict[str, float] = {}
        for worker in self.workers:
            for name, spent_s in cpu_s(worker.pid).items():
                spent[name] = spent.get(name, 0.0) + spent_s
        return spent

    def _read_appended_ms(self, records: int) -> Sequence[int]:
        """Return when the last outputs were written, sorted."""
        times: list[int] = []
        self._reader.assign([TopicPartition(self.topics.output, *place) for place in self._read.items()])
        while len(times) < self._unread + records:
            message = self._reader.poll(IN_TIME_S)
            assert message is not None, f"{self._unread + records - len(times)} outputs are missing"
            assert message.error() is None, message.error()
            times.append(message.timestamp()[1])
            self._read[message.partition() or 0] = (message.offset() or 0) + 1
        self._reader.unassign()  # or it would fetch while the workers work
        self._unread = 0
        return sorted(times)[-records:]


@contextmanager
def opened(scale: float) -> Iterator[Stage]:
    """Start a broker on a quarter of the cores, at least one, with this process; workers get the others."""
    start_server()  # it imports on all cores while the broker starts
    own = os.sched_getaffinity(0)
    ordered = sorted(own)
    of_broker = max(1, len(ordered) // 4)
    broker_cores, worker_cores = Cores(ordered[:of_broker]), Cores(ordered[of_broker:] or ordered)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        os.sched_setaffinity(0, broker_cores)
        stack.callback(os.sched_setaffinity, 0, own)
        kafka = start_kafka(Path(folder), _DELETES_SOON)
        stack.callback(kafka.close)
        parts = stack.enter_context(alone(worker_cores, scale))
        yield Stage(kafka, broker_cores, worker_cores, parts, scale)


def cpu_s(pid: int) -> dict[str, float]:
    """Return the seconds of CPU of a process until now, by the names of its threads.

    https://docs.kernel.org/scheduler/sched-stats.html: nanoseconds, where /proc/PID/stat counts hundredths of a second.
    """
    spent: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            name = (task / "comm").read_text().strip()
            spent[name] = spent.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / _NS
    return spent


def _check_delivery(error: KafkaError | None, _: Message) -> None:
    assert error is None, error  # raised by `flush`


def _make_topics(kafka: Kafka, partitions: int) -> Topics:
    topics = Topics.named_anew()
    create_topic(kafka.bootstrap_servers, topics.input, partitions, _SMALL_FILES)
    create_topic(kafka.bootstrap_servers, topics.output, partitions, _OUTPUT)
    create_topic(kafka.bootstrap_servers, topics.dead_letters)
    return topics


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1])
