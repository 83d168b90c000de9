"""Looks at a group and its topics from outside, also while nodes of the cluster come and go.

By the calls of consumers: the admin client's `list_offsets` was seen to hang, and to crash, while leaders moved.
"""

import threading
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.broker.kafka import REQUEST_TIMEOUT_S, Brokers, Topics, wait_until
from tests.broker.processes import group_of
from tests.chaos.verifier import Sample

_ANSWER_TIMEOUT_S = 5
_SAMPLE_EVERY_S = 0.5


class Watch:
    """Belongs to one thread."""

    def __init__(self, brokers: Brokers, topics: Topics) -> None:
        self._topics = topics
        of_group = {"bootstrap.servers": brokers.bootstrap_servers, "group.id": group_of(topics), "log_level": 0}
        self._consumer = Consumer({**of_group, "isolation.level": "read_uncommitted"})
        self._reader = Consumer({**of_group, "isolation.level": "read_committed"})
        self._partitions: dict[str, list[int]] = {}
        wait_until(self._shows_all_topics, REQUEST_TIMEOUT_S, "the brokers show the topics")

    def committed(self) -> Mapping[int, int]:
        """Return the group's offsets by partition; those without one are left out."""
        asked = [TopicPartition(self._topics.input, partition) for partition in self._partitions[self._topics.input]]
        answer = self._consumer.committed(asked, timeout=_ANSWER_TIMEOUT_S)
        for each in answer:
            if each.error is not None:
                raise KafkaException(each.error)
        return {each.partition: each.offset for each in answer if each.offset >= 0}

    def input_ends(self) -> Mapping[int, int]:
        """Return the offset after the last record, by partition."""
        return _ends(self._consumer, self._topics.input, self._partitions[self._topics.input])

    def output_ends(self) -> Mapping[tuple[str, int], int]:
        """Return them for both output topics."""
        return _output_ends(self._consumer, self._topics, self._partitions)

    def sample(self) -> Sample:
        """Read what is committed, and only then where the outputs end."""
        committed = self.committed()
        return Sample(committed, self.output_ends())

    def everything_is_committed(self) -> bool:
        """Return whether the group has committed the ends of the input; False where nobody answers."""
        try:
            return self.committed() == {partition: end for partition, end in self.input_ends().items() if end}
        except KafkaException:
            return False

    def wait_for_transactions(self, timeout_s: float) -> None:
        """Wait until a `read_committed` reader sees the outputs to their ends."""

        def none_is_open() -> bool:
            try:
                return _output_ends(self._reader, self._topics, self._partitions) == self.output_ends()
            except KafkaException:
                return False

        wait_until(none_is_open, timeout_s, "no transaction is open")

    def _shows_all_topics(self) -> bool:
        """Return whether each has all its partitions: not every node knows of a new topic at once."""
        topics = (self._topics.input, self._topics.output, self._topics.dead_letters)
        shown = {topic: self._consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic] for topic in topics}
        self._partitions = {topic: sorted(each.partitions) for topic, each in shown.items()}
        counts = {len(partitions) for partitions in self._partitions.values()}
        return len(counts) == 1 and counts != {0}


def keep_sampling(brokers: Brokers, topics: Topics, finished: threading.Event) -> list[Sample]:
    """Sample until the run has finished, less the moments at which nobody answers."""
    watch = Watch(brokers, topics)
    samples = []
    while not finished.wait(_SAMPLE_EVERY_S):
        try:
            samples.append(watch.sample())
        except KafkaException:
            continue
    return samples


def _output_ends(
    consumer: Consumer, topics: Topics, partitions: Mapping[str, list[int]]
) -> Mapping[tuple[str, int], int]:
    return {
        (topic, partition): end
        for topic in (topics.output, topics.dead_letters)
        for partition, end in _ends(consumer, topic, partitions[topic]).items()
    }


def _ends(consumer: Consumer, topic: str, partitions: list[int]) -> dict[int, int]:
    ends = {}
    consumer.list_topics(topic, timeout=_ANSWER_TIMEOUT_S)  # or a partition may stay unknown to the client
    for partition in partitions:
        answer = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ANSWER_TIMEOUT_S)
        if answer is None:
            raise KafkaException(f"no answer for {topic} {partition}")
        ends[partition] = answer[1]
    return ends
