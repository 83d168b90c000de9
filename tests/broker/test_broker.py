"""What the tests may rely on: the broker and the functions they look at it with."""

from pathlib import Path

from confluent_kafka import TIMESTAMP_CREATE_TIME, Producer

from tests.broker.kafka import Kafka, Sent, Topics, create_topic, end_offsets, produce, read_all, start_kafka


def test_a_record_comes_back_with_its_key_headers_and_timestamp(kafka: Kafka, topics: Topics) -> None:
    # By name: empty is not none, a header may be null and come twice, and its order stays.
    headers = (("note", b"1"), ("empty", b""), ("note", None), ("note", b"\xff"), ("größe", b"2"))
    records = [
        Sent(key=b"key", value=b"value", headers=headers, timestamp_ms=1_000, partition=2),
        Sent(key=b"", value=b"", timestamp_ms=1, partition=2),
        Sent(key=None, value=None, timestamp_ms=2_000, partition=2),
        Sent(key=b"\x00", value=bytes(2_000_000), timestamp_ms=3_000, partition=1),
    ]

    produce(kafka.bootstrap_servers, topics.input, records)

    assert [
        (message.partition(), message.offset(), message.key(), message.value(), message.headers(), message.timestamp())
        for message in read_all(kafka.bootstrap_servers, topics.input)
    ] == [
        (1, 0, b"\x00", bytes(2_000_000), None, (TIMESTAMP_CREATE_TIME, 3_000)),
        (2, 0, b"key", b"value", list(headers), (TIMESTAMP_CREATE_TIME, 1_000)),
        (2, 1, b"", b"", None, (TIMESTAMP_CREATE_TIME, 1)),
        (2, 2, None, None, None, (TIMESTAMP_CREATE_TIME, 2_000)),
    ]
    assert end_offsets(kafka.bootstrap_servers, topics.input) == {0: 0, 1: 1, 2: 3, 3: 0}


def test_only_what_a_transaction_has_committed_is_read(kafka: Kafka, topics: Topics) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topics.output})
    producer.init_transactions(30)

    producer.begin_transaction()
    producer.produce(topics.output, b"committed")
    producer.commit_transaction(30)
    producer.begin_transaction()
    producer.produce(topics.output, b"aborted")
    producer.flush(30)
    producer.abort_transaction(30)
    producer.begin_transaction()
    producer.produce(topics.output, b"open")
    producer.flush(30)

    assert [message.value() for message in read_all(kafka.bootstrap_servers, topics.output)] == [b"committed"]
    assert end_offsets(kafka.bootstrap_servers, topics.output) == {0: 5}


def test_a_broker_that_was_killed_comes_back_with_its_data(tmp_path: Path) -> None:
    broker = start_kafka(tmp_path)
    try:
        create_topic(broker.bootstrap_servers, "documents")
        produce(broker.bootstrap_servers, "documents", [Sent(key=None, value=b"before")])

        broker.stop(hard=True)
        broker.start()
        produce(broker.bootstrap_servers, "documents", [Sent(key=None, value=b"after")])

        messages = read_all(broker.bootstrap_servers, "documents")
        assert [message.value() for message in messages] == [b"before", b"after"]
    finally:
        broker.close()
    assert list(tmp_path.iterdir()) == []
