"""A cluster that fails as told: librdkafka's own mock, driven by ctypes, in this process.

It comes inside the wheel of confluent-kafka, https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_mock.h.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from pathlib import Path

import confluent_kafka

BROKERS = (1, 2, 3)

_PRODUCER = 0  # rd_kafka_type_t


class Api(IntEnum):
    """The requests that are made to fail here: https://kafka.apache.org/protocol#protocol_api_keys."""

    PRODUCE = 0
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    HEARTBEAT = 12
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class MockCluster:
    """Three brokers. Errors are of the client's codes; -195 closes the connection in place of an answer."""

    def __init__(self, library: ctypes.CDLL, client: ctypes.c_void_p) -> None:
        self._library = library
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(client, len(BROKERS)))
        assert self._cluster.value is not None
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        library.rd_kafka_mock_start_request_tracking(self._cluster)

    @property
    def bootstrap_servers(self) -> str:
        servers: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return servers.decode()

    def create_topic(self, name: str, partitions: int) -> None:
        self._check(self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, len(BROKERS)))

    def fail_next(self, api: Api, errors: Sequence[int]) -> None:
        """Answer the next requests of a kind with these errors, whichever broker they come to."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, int(api), len(errors), codes)

    def fail_no_more(self) -> None:
        """Forget the errors that no request has come for."""
        for api in Api:
            self._library.rd_kafka_mock_clear_request_errors(self._cluster, int(api))

    def answer_late(self, api: Api, late_ms: int) -> None:
        """Let each broker's next answer to a request of a kind, which it carries out, come late."""
        for broker in BROKERS:
            self._check(
                self._library.rd_kafka_mock_broker_push_request_error_rtts(
                    self._cluster,
                    broker,
                    ctypes.c_int16(api),
                    ctypes.c_size_t(1),
                    ctypes.c_int(0),
                    ctypes.c_int(late_ms),
                )
            )

    def set_round_trip(self, milliseconds: int) -> None:
        """Let every answer take so long."""
        for broker in BROKERS:
            self._check(self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, milliseconds))

    def take_down(self, broker: int) -> None:
        self._check(self._library.rd_kafka_mock_broker_set_down(self._cluster, broker))

    def bring_up(self, broker: int) -> None:
        self._check(self._library.rd_kafka_mock_broker_set_up(self._cluster, broker))

    def move_coordinator(self, kind: str, key: str, broker: int) -> None:
        """Let a broker coordinate the group or the transaction of this name."""
        self._check(self._library.rd_kafka_mock_coordinator_set(self._cluster, kind.encode(), key.encode(), broker))

    def requests(self) -> Counter[int]:
        """Count the requests that have come, by their key."""
        count = ctypes.c_size_t()
        requests = self._library.rd_kafka_mock_get_requests(self._cluster, ctypes.byref(count))
        keys = Counter(self._library.rd_kafka_mock_request_api_key(requests[each]) for each in range(count.value))
        self._library.rd_kafka_mock_request_destroy_array(requests, count)
        return keys

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)

    @staticmethod
    def _check(error: int) -> None:
        assert error == 0, confluent_kafka.KafkaError(error)


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    """Start a cluster on a client of its own, which connects to nothing."""
    library = _librdkafka()
    reason = ctypes.create_string_buffer(512)
    client = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, None, reason, ctypes.sizeof(reason)))
    assert client.value is not None, reason.value.decode()
    try:
        cluster = MockCluster(library, client)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        library.rd_kafka_destroy(client)


@cache
def _librdkafka() -> ctypes.CDLL:
    """Return the very library that confluent_kafka has loaded, with the types of what is called here."""
    package = Path(confluent_kafka.__file__).parent
    [path] = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    library = ctypes.CDLL(str(path))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("destroy", None, [pointer]),
        ("mock_cluster_new", pointer, [pointer, number]),
        ("mock_cluster_destroy", None, [pointer]),
        ("mock_cluster_bootstraps", text, [pointer]),
        ("mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("mock_topic_create", number, [pointer, text, number, number]),
        ("mock_push_request_errors_array", None, [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)]),
        ("mock_clear_request_errors", None, [pointer, ctypes.c_int16]),
        ("mock_broker_push_request_error_rtts", number, None),  # takes any number of pairs
        ("mock_broker_set_rtt", number, [pointer, ctypes.c_int32, number]),
        ("mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("mock_coordinator_set", number, [pointer, text, text, ctypes.c_int32]),
        ("mock_start_request_tracking", None, [pointer]),
        ("mock_get_requests", ctypes.POINTER(pointer), [pointer, ctypes.POINTER(ctypes.c_size_t)]),
        ("mock_request_api_key", ctypes.c_int16, [pointer]),
        ("mock_request_destroy_array", None, [ctypes.POINTER(pointer), ctypes.c_size_t]),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype = result
        if arguments is not None:
            function.argtypes = arguments
    return library
