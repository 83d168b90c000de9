import logging
import os
from collections.abc import Callable, Mapping

import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from worker.clients import (
    CONSUMER_ONLY,
    PRODUCER_ONLY,
    check_properties,
    common_properties,
    consumer_properties,
    producer_properties,
    transactional_properties,
)
from worker.errors import SettingsError
from worker.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _only_the_brokers_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("WORKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WORKER_BOOTSTRAP_SERVERS", "broker:9092")


def _wrong(flags: Mapping[str, object]) -> str:
    with pytest.raises(SettingsError) as raised:
        read_settings(flags)
    return str(raised.value)


# Where a setting comes from.


def test_only_the_brokers_have_to_be_set() -> None:
    settings = read_settings({}).model_dump(exclude={"prepare_threads"})

    assert settings == {
        "bootstrap_servers": "broker:9092",
        "group_id": "clip-worker",
        "input_topic": "documents",
        "output_topic": "embeddings",
        "dead_letter_topic": "dead-letters",
        "delivery": "at-least-once",
        "checkpoint_interval_s": 1,
        "checkpoint_records": 10_000,
        "transactional_id": None,
        "model": "ViT-B/32",
        "weights": "openai",
        "activation": "auto",
        "device": "auto",
        "precision": "auto",
        "max_batch": None,
        "max_wait_ms": 0,
        "preprocessing": "fast",
        "decoder": "cpu",
        "normalize": False,
        "traversal_paths": "r",
        "max_image_bytes": 16 * 1024 * 1024,
        "max_image_pixels": 50_000_000,
        "max_images_per_record": 64,
        "in_flight_images": None,
        "in_flight_bytes": 256 * 1024 * 1024,
        "max_rejected_share": None,
        "rejected_share_window": 1_000,
        "max_rejected_in_a_row": None,
        "drain_timeout_s": 30,
        "stall_timeout_s": 60,
        "http_host": "",
        "http_port": 9464,
        "log_format": None,
        "log_level": "info",
        "kafka": {},
    }


def test_the_brokers_have_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKER_BOOTSTRAP_SERVERS")

    assert _wrong({}) == "WORKER_BOOTSTRAP_SERVERS is required"


def test_at_most_as_many_threads_prepare_as_there_are_cores() -> None:
    assert 1 <= read_settings({}).prepare_threads <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("GROUP_ID", "images", "images"),
        ("INPUT_TOPIC", "a.B_c-9", "a.B_c-9"),
        ("INPUT_TOPIC", "x" * 249, "x" * 249),
        ("DELIVERY", "exactly-once", "exactly-once"),
        ("CHECKPOINT_INTERVAL_S", "0.25", 0.25),
        ("TRANSACTIONAL_ID", "worker-0", "worker-0"),
        ("DEVICE", "cuda:1", "cuda:1"),
        ("PRECISION", "bf16", "bf16"),
        ("MAX_BATCH", "512", 512),
        ("MAX_WAIT_MS", "2.5", 2.5),
        ("PREPARE_THREADS", "3", 3),
        ("PREPROCESSING", "reference", "reference"),
        ("NORMALIZE", "true", True),
        ("TRAVERSAL_PATHS", "r,cc", "r,cc"),
        ("MAX_IMAGE_BYTES", "20MiB", 20 * 1024 * 1024),
        ("MAX_IMAGE_BYTES", "20MB", 20_000_000),
        ("MAX_IMAGE_BYTES", "1.5 MiB", 1_572_864),
        ("MAX_IMAGE_BYTES", "1000", 1_000),
        ("IN_FLIGHT_IMAGES", "64", 64),
        ("HTTP_HOST", "127.0.0.1", "127.0.0.1"),
        ("HTTP_PORT", "0", 0),
        ("HTTP_PORT", "65535", 65_535),
        ("LOG_FORMAT", "json", "json"),
        ("LOG_LEVEL", "debug", "debug"),
    ],
)
def test_a_setting_comes_from_its_variable(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"WORKER_{name}", text)

    assert getattr(read_settings({}), name.lower()) == value


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_BATCH", "16")
    monkeypatch.setenv("WORKER_GROUP_ID", "from-the-variable")

    settings = read_settings({"max_batch": "32"})

    assert (settings.max_batch, settings.group_id) == (32, "from-the-variable")


def test_a_flag_wins_over_a_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_BATCH", "many")

    assert read_settings({"max_batch": "32"}).max_batch == 32


@pytest.mark.parametrize("name", ["max_batch", "kafka"])
def test_settings_can_not_be_changed(name: str) -> None:
    settings = read_settings({})

    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, name, None)


# What is wrong.

WRONG = [
    ("BOOTSTRAP_SERVERS", "", "at least 1 character"),
    ("GROUP_ID", "", "at least 1 character"),
    ("INPUT_TOPIC", "", "at least 1 character"),
    ("INPUT_TOPIC", "x" * 250, "at most 249 characters"),
    ("OUTPUT_TOPIC", "a b", "^[a-zA-Z0-9._-]+$"),
    ("DEAD_LETTER_TOPIC", "größe", "^[a-zA-Z0-9._-]+$"),
    ("DELIVERY", "at-most-once", "'at-least-once' or 'exactly-once'"),
    ("CHECKPOINT_INTERVAL_S", "0", "greater than 0"),
    ("CHECKPOINT_INTERVAL_S", "-1", "greater than 0"),
    ("CHECKPOINT_INTERVAL_S", "1s", "valid number"),
    ("CHECKPOINT_INTERVAL_S", "inf", "finite number"),
    ("CHECKPOINT_INTERVAL_S", "nan", "finite number"),
    ("TRANSACTIONAL_ID", "", "at least 1 character"),
    ("MODEL", "", "at least 1 character"),
    ("WEIGHTS", "", "at least 1 character"),
    ("DEVICE", "gpu", r"^(auto|cpu|cuda(:\d+)?)$"),
    ("DEVICE", "cuda:", r"^(auto|cpu|cuda(:\d+)?)$"),
    ("PRECISION", "fp64", "'auto', 'fp32', 'bf16' or 'fp16'"),
    ("MAX_BATCH", "0", "greater than 0"),
    ("MAX_BATCH", "-8", "greater than 0"),
    ("MAX_BATCH", "8.5", "valid integer"),
    ("MAX_BATCH", "many", "valid integer"),
    ("MAX_BATCH", "", "valid integer"),
    ("MAX_WAIT_MS", "-1", "greater than or equal to 0"),
    ("MAX_WAIT_MS", "inf", "finite number"),
    ("PREPARE_THREADS", "0", "greater than 0"),
    ("PREPROCESSING", "slow", "'fast' or 'reference'"),
    ("NORMALIZE", "perhaps", "takes true or false"),
    ("TRAVERSAL_PATHS", "", "r, c, cc, … (at most 64 deep)"),
    ("TRAVERSAL_PATHS", "r,x", "'x' is not a traversal path: r, c, cc, … (at most 64 deep)"),
    ("TRAVERSAL_PATHS", "c" * 65, "r, c, cc, … (at most 64 deep)"),
    ("MAX_IMAGE_BYTES", "0", "greater than 0"),
    ("MAX_IMAGE_BYTES", "16 apples", "unit"),
    ("MAX_IMAGE_BYTES", "-1", "unit"),
    ("MAX_IMAGE_PIXELS", "0", "greater than 0"),
    ("MAX_IMAGES_PER_RECORD", "0", "greater than 0"),
    ("IN_FLIGHT_IMAGES", "0", "greater than 0"),
    ("IN_FLIGHT_BYTES", "0", "greater than 0"),
    ("DRAIN_TIMEOUT_S", "0", "greater than 0"),
    ("DRAIN_TIMEOUT_S", "inf", "finite number"),
    ("STALL_TIMEOUT_S", "-1", "greater than 0"),
    ("HTTP_PORT", "-1", "greater than or equal to 0"),
    ("HTTP_PORT", "65536", "less than or equal to 65535"),
    ("HTTP_PORT", "http", "valid integer"),
    ("LOG_FORMAT", "xml", "'text' or 'json'"),
    ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
]


@pytest.mark.parametrize(("name", "value", "limit"), WRONG)
def test_a_wrong_variable_is_told_with_its_value_and_its_limit(
    name: str, value: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"WORKER_{name}", value)

    variable, _, said = _wrong({}).partition(": ")

    assert variable == f"WORKER_{name}={value}"
    assert limit in said


@pytest.mark.parametrize(("name", "value", "limit"), WRONG)
def test_a_wrong_flag_is_told_like_its_variable(name: str, value: str, limit: str) -> None:
    variable, _, said = _wrong({name.lower(): value}).partition(": ")

    assert variable == f"WORKER_{name}={value}"
    assert limit in said


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_BATCH", "0")
    monkeypatch.setenv("WORKER_DEVICE", "gpu")
    monkeypatch.delenv("WORKER_BOOTSTRAP_SERVERS")

    told = [part.partition(": ")[0] for part in _wrong({"log_level": "loud"}).split("; ")]

    assert told == [
        "WORKER_BOOTSTRAP_SERVERS is required",
        "WORKER_DEVICE=gpu",
        "WORKER_MAX_BATCH=0",
        "WORKER_LOG_LEVEL=loud",
    ]


@pytest.mark.parametrize(
    ("flags", "topics"),
    [
        ({"output_topic": "documents"}, ("documents", "documents", "dead-letters")),
        ({"dead_letter_topic": "documents"}, ("documents", "embeddings", "documents")),
        ({"dead_letter_topic": "embeddings"}, ("documents", "embeddings", "embeddings")),
        ({"input_topic": "a", "output_topic": "a", "dead_letter_topic": "a"}, ("a", "a", "a")),
    ],
    ids=["output is input", "dead letters are input", "dead letters are output", "all are one"],
)
def test_the_three_topics_must_differ(flags: Mapping[str, object], topics: tuple[str, str, str]) -> None:
    assert _wrong(flags) == (
        "the three topics must differ: "
        f"WORKER_INPUT_TOPIC={topics[0]}, WORKER_OUTPUT_TOPIC={topics[1]}, WORKER_DEAD_LETTER_TOPIC={topics[2]}"
    )


def test_a_full_record_must_fit_into_what_is_in_flight() -> None:
    assert _wrong({"in_flight_images": "63"}) == (
        "WORKER_IN_FLIGHT_IMAGES=63 is less than WORKER_MAX_IMAGES_PER_RECORD=64: "
        "those of a record are in flight together"
    )


def test_as_many_images_in_flight_as_one_record_has_are_enough() -> None:
    settings = read_settings({"in_flight_images": "8", "max_images_per_record": "8"})

    assert (settings.in_flight_images, settings.max_images_per_record) == (8, 8)


@pytest.mark.parametrize(
    ("text", "depths"), [("r", {0}), ("c", {1}), ("r,c", {0, 1}), ("r, r", {0}), ("cc", {2})], ids=str
)
def test_traversal_paths_are_read_as_depths(text: str, depths: set[int]) -> None:
    assert read_settings({"traversal_paths": text}).default_paths == depths


# Variables that are none of ours.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_MAX_BATCHES", "8"),
        ("WORKER_", "8"),
        ("WORKER_KAFKA", '{"acks": "0"}'),
        ("WORKER_KAFKA_ACKS", "0"),
        ("WORKER_max_batch", "8"),
        ("worker_max_batch", "8"),
        ("Worker_Max_Btch", "8"),
        ("WORKER_PORT", "9464"),
        ("WORKER_SERVICE", "10.0.0.1"),
        ("WORKER_PREFETCH_PORT", "http://10.0.0.1:80"),
    ],
)
def test_an_unknown_variable_stops_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    assert _wrong({}) == f"unknown variables: {name}; see the settings in the README"


def test_all_unknown_variables_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_Z", "1")
    monkeypatch.setenv("WORKER_A", "1")

    assert _wrong({}) == "unknown variables: WORKER_A, WORKER_Z; see the settings in the README"


def test_an_unknown_flag_is_an_error() -> None:
    assert _wrong({"max_batches": "8"}) == "WORKER_MAX_BATCHES=8: Extra inputs are not permitted"


def test_variables_of_others_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_BATCH", "0")
    monkeypatch.setenv("MYWORKER_MAX_BATCH", "0")
    monkeypatch.setenv("WORKERS", "0")

    assert read_settings({}).max_batch is None


def _service_links(service: str) -> dict[str, str]:
    """Return what Kubernetes sets for a service with one named and one unnamed port."""
    return {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "9464",
        f"{service}_SERVICE_PORT_HTTP_METRICS": "9464",
        f"{service}_PORT": "tcp://10.0.0.1:9464",
        f"{service}_PORT_9464_TCP": "tcp://10.0.0.1:9464",
        f"{service}_PORT_9464_TCP_PROTO": "tcp",
        f"{service}_PORT_9464_TCP_PORT": "9464",
        f"{service}_PORT_9464_TCP_ADDR": "10.0.0.1",
        f"{service}_PORT_53_UDP": "udp://[fd00::1]:53",
        f"{service}_PORT_53_UDP_PROTO": "udp",
        f"{service}_PORT_53_UDP_PORT": "53",
        f"{service}_PORT_53_UDP_ADDR": "fd00::1",
    }


@pytest.mark.parametrize("service", ["WORKER", "WORKER_HTTP", "WORKER_METRICS_2", "WORKER_KAFKA", "WORKER_INPUT_TOPIC"])
def test_the_links_of_a_kubernetes_service_are_ignored(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = read_settings({})
    for name, value in _service_links(service).items():
        monkeypatch.setenv(name, value)

    assert read_settings({}) == without


def test_a_flag_wins_over_the_link_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_HTTP_PORT", "tcp://10.0.0.1:80")

    assert read_settings({"http_port": "8080"}).http_port == 8080


# Properties of librdkafka.


@pytest.mark.parametrize("value", ["SSL", "5", "true", "null", '{"a": 1}', "[1]", "1e5", '"q"', "a=b", "", " x "])
def test_a_property_comes_from_its_variable_as_text(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KAFKA__SASL_PASSWORD", value)

    assert read_settings({}).kafka_properties == {"sasl.password": value}


def test_properties_have_dots_where_their_variables_have_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KAFKA__SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("WORKER_KAFKA__SSL_CA_LOCATION", "/etc/ssl/ca.pem")

    properties = read_settings({"kafka": {"linger.ms": "7", "Fetch.Min.Bytes": "1"}}).kafka_properties

    assert properties == {
        "security.protocol": "SSL",
        "ssl.ca.location": "/etc/ssl/ca.pem",
        "linger.ms": "7",
        "fetch.min.bytes": "1",
    }


def test_a_property_of_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KAFKA__LINGER_MS", "5")
    monkeypatch.setenv("WORKER_KAFKA__RETRIES", "5")

    settings = read_settings({"kafka": {"linger.ms": "7"}})

    assert settings.kafka_properties == {"linger.ms": "7", "retries": "5"}


RESERVED = [
    "group.id",
    "bootstrap.servers",
    "metadata.broker.list",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "transactional.id",
    "isolation.level",
    "delivery.report.only.error",
    "enable.partition.eof",
    "statistics.interval.ms",
]


@pytest.mark.parametrize("name", RESERVED)
def test_a_property_that_a_guarantee_rests_on_is_refused_as_a_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"WORKER_KAFKA__{name.upper().replace('.', '_')}", "x")

    assert _wrong({}) == f"kafka property {name}=x can't be set: a guarantee or another setting rests on it"


@pytest.mark.parametrize("written", [str, str.upper, lambda name: name.replace(".", "_")], ids=["dots", "upper", "_"])
@pytest.mark.parametrize("name", RESERVED)
def test_a_property_that_a_guarantee_rests_on_is_refused_as_a_flag(name: str, written: Callable[[str], str]) -> None:
    refusal = _wrong({"kafka": {written(name): "x"}})

    assert refusal == f"kafka property {name}=x can't be set: a guarantee or another setting rests on it"


@pytest.mark.parametrize("name", ["group.instance.id", "group.protocol", "client.id", "message.max.bytes"])
def test_a_property_whose_name_only_looks_reserved_may_be_set(name: str) -> None:
    assert read_settings({"kafka": {name: "x"}}).kafka_properties == {name: "x"}


# The clients.

# A value for each property that only one kind of client takes; defaults, where the default is a value.
CONSUMERS = {
    "auto.commit.interval.ms": "5000",
    "auto.offset.reset": "latest",
    "check.crcs": "false",
    "consume.callback.max.messages": "0",
    "coordinator.query.interval.ms": "600000",
    "fetch.error.backoff.ms": "500",
    "fetch.max.bytes": "52428800",
    "fetch.message.max.bytes": "1048576",
    "fetch.min.bytes": "1",
    "fetch.queue.backoff.ms": "1000",
    "fetch.wait.max.ms": "500",
    "group.instance.id": "one",
    "group.protocol": "classic",
    "group.protocol.type": "consumer",
    "group.remote.assignor": "uniform",
    "heartbeat.interval.ms": "3000",
    "max.partition.fetch.bytes": "1048576",
    "max.poll.interval.ms": "300000",
    "partition.assignment.strategy": "range,roundrobin",
    "queued.max.messages.kbytes": "65536",
    "queued.min.messages": "100000",
    "session.timeout.ms": "45000",
}
PRODUCERS: dict[str, str | bool] = {
    "batch.num.messages": "10000",
    "batch.size": "1000000",
    "compression.codec": "none",
    "compression.level": "-1",
    "compression.type": "none",
    "delivery.timeout.ms": "300000",
    "enable.gapless.guarantee": "false",
    "linger.ms": "5",
    "message.send.max.retries": "2147483647",
    "message.timeout.ms": "300000",
    "partitioner": "consistent_random",
    "queue.buffering.backpressure.threshold": "1",
    "queue.buffering.max.kbytes": "1048576",
    "queue.buffering.max.messages": "100000",
    "queue.buffering.max.ms": "5",
    "queuing.strategy": "fifo",
    "request.timeout.ms": "30000",
    "retries": "2147483647",
    "sticky.partitioning.linger.ms": "10",
    "transaction.timeout.ms": "60000",
}
NOT_TEXT = {"msg_order_cmp"}  # a function's address in C: no text can set it, on any client


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _ignored(client: type[Consumer | Producer], properties: Mapping[str, object]) -> list[str]:
    """Make the client, and return the lines in which librdkafka says that it ignores a property."""
    logger, handler = logging.getLogger("tests.client"), _Lines()
    logger.addHandler(handler)
    made = client(dict(properties), logger=logger)
    made.poll(0)  # serves the log lines
    if isinstance(made, Consumer):
        made.close()
    logger.removeHandler(handler)
    return [line for line in handler.lines if "will be ignored by this" in line]


def test_every_property_of_our_lists_has_a_value_here() -> None:
    assert (set(CONSUMERS), set(PRODUCERS) | NOT_TEXT) == (set(CONSUMER_ONLY), set(PRODUCER_ONLY))


@pytest.mark.parametrize(("name", "value"), CONSUMERS.items())
def test_librdkafka_takes_a_consumer_property_on_a_consumer_only(name: str, value: str) -> None:
    on_consumer = _ignored(Consumer, {"group.id": "g", name: value})
    on_producer = _ignored(Producer, {name: value})

    assert on_consumer == []
    assert len(on_producer) == 1
    assert "is a consumer property" in on_producer[0]


@pytest.mark.parametrize(("name", "value"), PRODUCERS.items())
def test_librdkafka_takes_a_producer_property_on_a_producer_only(name: str, value: str | bool) -> None:  # noqa: FBT001
    on_producer = _ignored(Producer, {name: value})
    on_consumer = _ignored(Consumer, {"group.id": "g", name: value})

    assert on_producer == []
    assert len(on_consumer) == 1
    assert "is a producer property" in on_consumer[0]


@pytest.mark.parametrize("name", sorted(NOT_TEXT))
@pytest.mark.parametrize("client", [Consumer, Producer])
def test_librdkafka_takes_no_text_for_a_function(client: type[Consumer | Producer], name: str) -> None:
    with pytest.raises(KafkaException, match="must be set through dedicated"):
        client({"group.id": "g", name: "x"})


@pytest.mark.parametrize("name", sorted(CONSUMER_ONLY))
def test_a_consumer_property_reaches_the_consumer_only(name: str) -> None:
    settings = read_settings({"kafka": {name: "x"}})

    assert consumer_properties(settings)[name] == "x"
    assert name not in producer_properties(settings)
    assert name not in transactional_properties(settings)
    assert name not in common_properties(settings)


@pytest.mark.parametrize("name", sorted(PRODUCER_ONLY - NOT_TEXT))
def test_a_producer_property_reaches_the_producers_only(name: str) -> None:
    settings = read_settings({"kafka": {name: "x"}})

    assert producer_properties(settings)[name] == "x"
    assert transactional_properties(settings)[name] == "x"
    assert name not in consumer_properties(settings)
    assert name not in common_properties(settings)


@pytest.mark.parametrize(
    "name", ["security.protocol", "sasl.password", "client.id", "debug", "socket.timeout.ms", "message.max.bytes"]
)
def test_any_other_property_reaches_every_client(name: str) -> None:
    settings = read_settings({"kafka": {name: "x"}})

    assert [
        properties[name]
        for properties in (
            consumer_properties(settings),
            producer_properties(settings),
            transactional_properties(settings),
            common_properties(settings),
        )
    ] == ["x"] * 4


def _of_guarantees(properties: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in properties.items() if name in RESERVED}


@pytest.mark.parametrize("own", [{}, {"linger.ms": "1", "security.protocol": "SSL"}], ids=["none", "some"])
def test_the_guarantees_do_not_depend_on_the_users_properties(own: dict[str, str]) -> None:
    settings = read_settings({"kafka": own, "transactional_id": "worker-0"})

    written = {"bootstrap.servers": "broker:9092", "acks": "all", "enable.idempotence": True}
    assert _of_guarantees(producer_properties(settings)) == written
    assert _of_guarantees(transactional_properties(settings)) == {**written, "transactional.id": "worker-0"}
    assert _of_guarantees(consumer_properties(settings)) == {
        "bootstrap.servers": "broker:9092",
        "group.id": "clip-worker",
        "isolation.level": "read_committed",
        "statistics.interval.ms": 1_000,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }


@pytest.mark.parametrize(
    "own",
    [{}, {"security.protocol": "PLAINTEXT", "linger.ms": "1"}, {"group.protocol": "classic"}],
    ids=["none", "some", "classic"],
)
def test_librdkafka_ignores_none_of_the_workers_properties(own: dict[str, str]) -> None:
    settings: Settings = read_settings({"bootstrap_servers": "127.0.0.1:1", "kafka": own})

    assert _ignored(Consumer, consumer_properties(settings)) == []
    assert _ignored(Producer, producer_properties(settings)) == []
    assert _ignored(Producer, transactional_properties(settings)) == []


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"security.protocl": "SSL"}, 'No such configuration property: "security.protocl"'),
        ({"security.protocol": "TLS"}, 'Invalid value "TLS" for configuration property "security.protocol"'),
        ({"request.timeout.ms": "soon"}, 'Invalid value for configuration property "request.timeout.ms"'),
        ({"session.timeout.ms": "0"}, 'Configuration property "session.timeout.ms" value 0 is outside allowed range'),
    ],
    ids=["unknown", "wrong value", "a producer's", "a consumer's"],
)
def test_a_property_that_librdkafka_refuses_stops_the_start(own: dict[str, str], said: str, delivery: str) -> None:
    settings = read_settings({"bootstrap_servers": "127.0.0.1:1", "delivery": delivery, "kafka": own})

    with pytest.raises(SettingsError) as raised:
        check_properties(settings)

    assert str(raised.value).startswith(f"kafka property refused: {said}")


def test_a_refusal_gives_no_secret_away() -> None:
    own = {"sasl.password": "hunter2", "lingr.ms": "5"}
    settings = read_settings({"bootstrap_servers": "127.0.0.1:1", "kafka": own})

    with pytest.raises(SettingsError) as raised:
        check_properties(settings)

    assert str(raised.value).endswith('"lingr.ms" (set: sasl.password, lingr.ms)')


def test_the_gpus_decoder_does_not_go_with_open_clips_own_transform() -> None:
    assert _wrong({"decoder": "nvjpeg", "preprocessing": "reference"}) == (
        "WORKER_DECODER=nvjpeg doesn't go with WORKER_PREPROCESSING=reference, which nvJPEG isn't to the bit"
    )
