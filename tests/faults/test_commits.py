"""The consumer's commits alone: what the group has said to have, it keeps."""

import time
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import KafkaError

from tests.faults.mock_cluster import Api, MockCluster, mock_cluster
from worker.clients import consumer_properties
from worker.settings import Settings
from worker.source import Source

IN_TIME_S = 15.0
RETRIED_S = 2.0  # by when the client has made all of its own retries of a commit
OFFSETS = range(1, 9)


class _Listener:
    def __init__(self) -> None:
        self.owned: set[int] = set()

    def assigned(self, partitions: Sequence[int]) -> None:
        self.owned.update(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        self.owned.difference_update(partitions)


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as started:
        yield started


@pytest.fixture
def source(cluster: MockCluster) -> Iterator[Source]:
    cluster.create_topic("documents", 1)
    settings = Settings(bootstrap_servers=cluster.bootstrap_servers)
    member, listener = Source(consumer_properties(settings), "documents", lambda _: None), _Listener()
    member.subscribe(listener)
    _poll(member, IN_TIME_S, lambda: listener.owned == {0})
    assert listener.owned == {0}
    yield member
    member.close()


def _poll(source: Source, seconds: float, is_enough: object = None) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not (callable(is_enough) and is_enough()):
        source.poll(0.05)


def _committed(source: Source) -> int:
    [known] = source._consumer.committed(source.offsets({0: 0}), timeout=IN_TIME_S)
    return int(known.offset)


@pytest.mark.parametrize(
    "error",
    [
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,
    ],
    ids=lambda error: KafkaError(error).name(),
)
def test_offsets_never_go_back_once_a_later_commit_was_made(cluster: MockCluster, source: Source, error: int) -> None:
    cluster.fail_next(Api.OFFSET_COMMIT, [error] * 4)

    for offset in OFFSETS:
        while source.commit({0: offset}) is not None and offset == OFFSETS[-1]:
            source.poll(0.05)
    said = _committed(source)
    _poll(source, RETRIED_S)

    assert (said, _committed(source)) == (OFFSETS[-1], OFFSETS[-1])
