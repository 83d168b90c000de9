"""The commands of a user, one after the other, on a real broker: topics, check, publish, run, consume."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from PIL import Image
from skimage import data

from schemas import Document, Origin, pack_document, pack_embedding
from tests.broker.kafka import Kafka, Sent, Topics, create_topic, produce, read_all, wait_until
from tests.broker.processes import running_worker
from worker.cli.main import group
from worker.errors import KafkaSetupError

ROOT = Path(__file__).parents[2]
PHOTOGRAPH = "astronaut"
EIGHT_MB = 8_000_000
WORK_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class User:
    """Somebody at a shell whose environment names the broker and the topics."""

    kafka: Kafka
    topics: Topics

    def runs(self, *command: str | Path) -> Result:
        environment = {
            "WORKER_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "WORKER_INPUT_TOPIC": self.topics.input,
            "WORKER_OUTPUT_TOPIC": self.topics.output,
            "WORKER_DEAD_LETTER_TOPIC": self.topics.dead_letters,
        }
        return CliRunner().invoke(group, [str(word) for word in command], env=environment)

    def says(self, *command: str | Path) -> str:
        result = self.runs(*command)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output


@pytest.fixture
def user(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> User:
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        monkeypatch.delenv(name)
    return User(kafka, Topics.named_anew())


def _config(kafka: Kafka, topic: str) -> Mapping[str, str | None]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    answer = admin.describe_configs([resource])[resource].result()
    return {name: entry.value for name, entry in answer.items()}


def _photograph() -> Image.Image:
    return Image.fromarray(getattr(data, PHOTOGRAPH)())


def _photograph_of_8_mb(folder: Path) -> Path:
    path = folder / "large.jpg"
    grain = np.random.default_rng(0).integers(-40, 40, (3000, 3000, 3))
    whole = np.asarray(_photograph().resize((3000, 3000)))
    Image.fromarray(np.clip(whole + grain, 0, 255).astype(np.uint8)).save(path, quality=98)
    assert path.stat().st_size >= EIGHT_MB
    return path


def test_topics_makes_the_topics_with_limits_for_the_largest_image(user: User) -> None:
    user.says("topics", "--partitions", "3", "--max-image-bytes", "20MiB")

    found = AdminClient({"bootstrap.servers": user.kafka.bootstrap_servers}).list_topics(timeout=10).topics
    for topic in (user.topics.input, user.topics.output, user.topics.dead_letters):
        assert len(found[topic].partitions) == 3
        assert int(_config(user.kafka, topic)["max.message.bytes"] or 0) > 20 * 2**20
    assert _config(user.kafka, user.topics.output)["cleanup.policy"] == "compact"


def test_topics_repeated_changes_nothing(user: User) -> None:
    user.says("topics")
    before = _config(user.kafka, user.topics.input)

    said = user.says("topics", "--partitions", "8")

    assert said.count("is there, 4 partitions kept, max.message.bytes=") == 3
    assert _config(user.kafka, user.topics.input) == before


def test_topics_raises_a_limit_that_is_too_small_and_leaves_the_rest(user: User) -> None:
    create_topic(user.kafka.bootstrap_servers, user.topics.input, 7, {"retention.ms": "12345678"})

    said = user.says("topics")

    assert (
        f"{user.topics.input}: is there, 7 partitions kept, max.message.bytes raised from 1048588 to 17825792" in said
    )
    assert _config(user.kafka, user.topics.input)["retention.ms"] == "12345678"


def test_check_finds_everything_fine_where_it_is(user: User) -> None:
    user.says("topics")

    said = user.says("check", "--weights", "random", "--model", "ViT-S-32-alt", "--kafka", "sasl.password=secret")

    assert "run has all it needs" in said
    assert "wrong" not in said
    assert "secret" not in said


def test_check_says_what_is_wrong_and_how_to_mend_it(user: User) -> None:
    create_topic(user.kafka.bootstrap_servers, user.topics.input)
    create_topic(user.kafka.bootstrap_servers, user.topics.output)
    create_topic(user.kafka.bootstrap_servers, user.topics.dead_letters)

    result = user.runs("check", "--weights", "nowhere.pt")

    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "max.message.bytes=1048588 is under 17825792" in said
    assert "`clip-worker topics` raises it" in said
    assert "WEIGHTS=nowhere.pt is neither a file nor a pretrained tag" in said
    assert f"run would not work: limits of {user.topics.input}" in said


def test_check_names_a_decoder_that_the_device_lacks(user: User) -> None:
    user.says("topics")

    result = user.runs(
        "check", "--weights", "random", "--model", "ViT-S-32-alt", "--device", "cpu", "--decoder", "nvjpeg"
    )

    assert result.exit_code == 1
    assert "DECODER=nvjpeg needs CUDA, but the device is cpu" in " ".join(result.output.split())


def test_check_names_topics_that_are_missing(user: User) -> None:
    result = user.runs("check", "--weights", "random", "--model", "ViT-S-32-alt")

    assert result.exit_code == 1
    assert "`clip-worker topics` makes what is missing" in " ".join(result.output.split())


@pytest.mark.parametrize("odd", ["foo=bar", "session.timeout.ms=abc"])
def test_check_names_a_property_that_run_would_refuse(odd: str, user: User) -> None:
    user.says("topics")

    result = user.runs("check", "--weights", "random", "--model", "ViT-S-32-alt", "--kafka", odd)

    assert result.exit_code == 1
    assert "Error: run would not work: properties" in result.output
    assert "kafka property refused" in result.output


def test_check_asks_a_broker_that_does_not_answer_only_once(user: User) -> None:
    result = user.runs("check", "--bootstrap-servers", "127.0.0.1:1", "--weights", "random", "--model", "ViT-S-32-alt")

    assert result.exit_code == 1
    assert "no broker answers at 127.0.0.1:1" in " ".join(result.output.split())
    assert not any(what in result.output for what in ("limits", "right"))


def test_a_photograph_of_8_mb_and_a_folder_go_all_the_way(user: User, tmp_path: Path) -> None:
    large = _photograph_of_8_mb(tmp_path)
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    _photograph().save(folder / "astronaut.png")
    _photograph().save(folder / "below" / "again.webp")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not published")
    user.says("topics")

    assert "4 documents published" in user.says("publish", large, folder)
    with running_worker(user.kafka, user.topics) as worker:
        worker.wait_until(
            lambda: worker.metric("clip_worker_records_total", outcome="embedded") == 3, WORK_TIMEOUT_S, "3 embeddings"
        )
        assert worker.stop() == 0

    target = tmp_path / "embeddings.parquet"
    assert "3 embeddings" in user.says("consume", "--output", target)
    table = pyarrow.parquet.read_table(target).to_pydict()
    expected = {path.as_posix() for path in (large, folder / "astronaut.png", folder / "below" / "again.webp")}
    assert set(table["id"]) == expected
    assert {len(embedding) for embedding in table["embedding"]} == {512}
    [letter] = read_all(user.kafka.bootstrap_servers, user.topics.dead_letters)
    assert letter.key() == (folder / "broken.jpg").as_posix().encode()


def _embedding_record(tags: bytes, name: str = "a") -> bytes:
    """Return what the worker writes for a document of this id with these msgpack bytes as its tags."""
    document = Document(name, memoryview(b"an image file"), tags=memoryview(tags))
    return pack_embedding(document, np.ones((1, 512), np.float32), Origin("m", "fast", normalized=False))


@pytest.fixture
def embedded(user: User) -> User:
    """Return a user on whose output topic there are: a, b twice, c deleted, and d with two chunks."""
    user.says("topics", "--partitions", "1")
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (0, 90, 180, 255)]
    chunk = {"dtype": "uint8", "shape": [4, 4, 3], "data": pictures[3].tobytes()}
    nested = {"id": "d", "chunks": [{"id": "d1", "blob": chunk, "tags": {"page": 1}}, {"blob": chunk}]}
    records = [
        Sent(b"a", pack_document("a", pictures[0], tags={"colour": "black"})),
        Sent(b"b", pack_document("b", pictures[0])),
        Sent(b"c", pack_document("c", pictures[1])),
        Sent(b"b", pack_document("b", pictures[2])),
        Sent(b"c", None),
        Sent(b"d", bytes(msgpack.packb(nested)), headers=(("traversal", b"c"),)),
    ]
    produce(user.kafka.bootstrap_servers, user.topics.input, records)
    with running_worker(user.kafka, user.topics) as worker:
        wait_until(
            lambda: len(read_all(user.kafka.bootstrap_servers, user.topics.output)) == len(records),
            WORK_TIMEOUT_S,
            "all outcomes",
        )
        assert worker.stop() == 0
    return user


def test_consume_gives_the_latest_of_each_key_and_flattens_chunks(embedded: User, tmp_path: Path) -> None:
    target = tmp_path / "embeddings.jsonl"

    embedded.says("consume", "-o", target)

    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["chunk"], row["chunk_id"], row["tags"], row["offset"]) for row in rows] == [
        ("a", "", None, '{"colour": "black"}', 0),
        ("b", "", None, None, 3),
        ("d", "0", "d1", '{"page": 1}', 5),
        ("d", "1", None, None, 5),
    ]
    assert {len(row["embedding"]) for row in rows} == {512}


def test_consume_gives_every_record_where_that_is_asked_for(embedded: User, tmp_path: Path) -> None:
    target = tmp_path / "embeddings.npz"

    embedded.says("consume", "--all", "-o", target)

    with np.load(target) as columns:
        assert columns["id"].tolist() == ["a", "b", "c", "b", "d", "d"]
        assert columns["embedding"].shape == (6, 512)
        assert columns["embedding"].dtype == np.float32


def test_consume_without_a_file_prints_a_line_for_each(embedded: User) -> None:
    said = embedded.says("consume")

    assert [line.split("  ")[0].strip() for line in said.splitlines() if "512 numbers" in line] == [
        "a",
        "b",
        "d › d1",
        "d › 1",
    ]


def test_consume_shows_an_id_on_one_line_whatever_is_in_it(user: User) -> None:
    user.says("topics", "--partitions", "1")
    record = Sent(b"a", _embedding_record(b"\xc0", "é\n\x1b[2J"))
    produce(user.kafka.bootstrap_servers, user.topics.output, [record])

    said = user.says("consume")

    assert [line.split("  ")[0] for line in said.splitlines()] == [r"é\n\x1b[2J", "1 embeddings"]


def test_consume_gives_up_where_nothing_comes(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Consumer):
        def assign(self, partitions: list[TopicPartition]) -> None:
            user.kafka.suspend()
            super().assign(partitions)

    user.says("topics", "--partitions", "2")
    monkeypatch.setattr("worker.cli.consume.Consumer", Losing)
    monkeypatch.setattr("worker.cli.consume.SILENCE_S", 0.5)

    try:
        result = user.runs("consume")
    finally:
        user.kafka.resume()

    assert isinstance(result.exception, KafkaSetupError)
    assert str(result.exception) == f"reading partitions 0, 1 of {user.topics.output}: nothing came for 0.5 s"


def test_consume_reads_whatever_tags_a_document_had(user: User, tmp_path: Path) -> None:
    user.says("topics", "--partitions", "1")
    tags = [b"\x81\xc4\x01a\x01", b"\x81\x91\x01\x02", b"\xa1\xff", b"\xd4\xff\x00", b"\xcb\x7f\xf8" + bytes(6)]
    records = [Sent(b"%d" % number, _embedding_record(packed)) for number, packed in enumerate(tags)]
    produce(user.kafka.bootstrap_servers, user.topics.output, records)
    target = tmp_path / "EMBEDDINGS.JSONL"

    user.says("consume", "-o", target)

    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [json.loads(row["tags"]) for row in rows] == [{"a": 1}, {"[1]": 2}, "\ufffd", "\ufffd\ufffd\x00", None]


def test_consume_names_a_record_that_is_no_embedding_and_leaves_the_file_as_it_was(user: User, tmp_path: Path) -> None:
    user.says("topics", "--partitions", "1")
    produce(
        user.kafka.bootstrap_servers, user.topics.output, [Sent(b"a", _embedding_record(b"\xc0")), Sent(b"b", b"7")]
    )
    target = tmp_path / "embeddings.jsonl"
    target.write_text("of yesterday")

    result = user.runs("consume", "-o", target)

    assert result.exit_code == 1
    assert f"{user.topics.output}[0]@1 is no embedding record: not-a-map: the record is a int" in result.output
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("embeddings.jsonl", "of yesterday")]


@pytest.mark.parametrize("name", ["embeddings.jsonl", "embeddings.npz", "embeddings.parquet"])
def test_consume_says_that_there_is_no_such_folder(name: str, user: User) -> None:
    user.says("topics", "--partitions", "1")

    result = user.runs("consume", "-o", f"/nowhere/{name}")

    assert result.exit_code == 1
    assert f"Error: /nowhere/{name} can't be written: No such file or directory" in result.output


def test_consume_that_is_interrupted_leaves_no_file_and_says_so_by_its_exit_code(user: User, tmp_path: Path) -> None:
    user.says("topics", "--partitions", "1")
    produce(
        user.kafka.bootstrap_servers,
        user.topics.output,
        [Sent(b"%d" % number, _embedding_record(b"\xc0")) for number in range(20_000)],
    )
    words = ("consume", "-o", "embeddings.jsonl", "--bootstrap-servers", user.kafka.bootstrap_servers)
    process = subprocess.Popen(
        (sys.executable, "-m", "worker", *words, "--output-topic", user.topics.output, "--all"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    part = tmp_path / "embeddings.jsonl.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, WORK_TIMEOUT_S, "the first rows")

    process.send_signal(signal.SIGINT)

    assert process.wait(WORK_TIMEOUT_S) == 1
    assert list(tmp_path.iterdir()) == []


def test_consume_refuses_a_file_that_it_can_not_write(user: User) -> None:
    result = user.runs("consume", "-o", "embeddings.csv")

    assert result.exit_code == 2
    assert "--output takes a file that ends in .parquet, .npz, .jsonl" in result.output


def test_publish_says_which_file_the_topic_has_no_room_for(user: User, tmp_path: Path) -> None:
    for topic in (user.topics.input, user.topics.output, user.topics.dead_letters):
        create_topic(user.kafka.bootstrap_servers, topic)
    large = _photograph_of_8_mb(tmp_path)

    result = user.runs("publish", large)

    assert result.exit_code == 1
    assert f"{large.as_posix()}: Broker: Message size too large" in result.output


def test_publish_says_which_file_is_larger_than_the_clients_queue(user: User, tmp_path: Path) -> None:
    user.says("topics")
    large = _photograph_of_8_mb(tmp_path)

    result = user.runs("publish", "--kafka", "queue.buffering.max.kbytes=4096", large)

    assert result.exit_code == 1
    assert f"{large.as_posix()}: " in result.output
    assert "bytes are more than queue.buffering.max.kbytes" in result.output


def test_publish_to_a_topic_that_is_not_there_makes_none(user: User) -> None:
    result = user.runs("publish", ROOT / "worker" / "cli" / "photographs")

    assert isinstance(result.exception, KafkaSetupError)
    said = f"no such topic at {user.kafka.bootstrap_servers}, or no right to see it: {user.topics.input};"
    assert said in str(result.exception)
    admin = AdminClient({"bootstrap.servers": user.kafka.bootstrap_servers})
    assert user.topics.input not in admin.list_topics(timeout=10).topics


def test_publish_gives_up_a_record_that_is_not_acknowledged_in_time(user: User, tmp_path: Path) -> None:
    user.says("topics")
    _photograph().save(tmp_path / "one.png")

    result = user.runs("publish", tmp_path, "--kafka", "delivery.timeout.ms=1", "--kafka", "linger.ms=0")

    assert result.exit_code == 1
    assert "0 documents published" in result.output
    assert "one.png: Local: Message timed out" in result.output


def test_publish_takes_a_file_whose_name_is_not_utf_8(user: User, tmp_path: Path) -> None:
    user.says("topics", "--partitions", "1")
    _photograph().save(tmp_path / "caf\udce9.png")

    user.says("publish", tmp_path)

    [sent] = read_all(user.kafka.bootstrap_servers, user.topics.input)
    assert sent.key() == f"{tmp_path.as_posix()}/caf\ufffd.png".encode()


def test_publish_names_a_folder_without_images(user: User, tmp_path: Path) -> None:
    result = user.runs("publish", tmp_path)

    assert result.exit_code == 1
    assert f"no image file below {tmp_path}" in result.output


def test_the_readme_s_consumer_shows_embeddings_and_deletions(user: User, tmp_path: Path) -> None:
    user.says("topics")
    origin = Origin("m", "fast", normalized=False)
    nothing_at_the_root = pack_embedding(Document("album"), np.zeros((0, 512), np.float32), origin)
    cat = pack_embedding(Document("cat", image=memoryview(b"-")), np.full((1, 512), 0.5, np.float32), origin)
    records = [Sent(b"album", nothing_at_the_root), Sent(b"cat", cat), Sent(b"dog", None)]
    produce(user.kafka.bootstrap_servers, user.topics.output, records)
    marked = "<!-- a consumer with msgpack and numpy alone -->\n```python\n"
    example = (ROOT / "README.md").read_text().partition(marked)[2]
    script = (
        example.partition("```")[0]
        .replace("localhost:9092", user.kafka.bootstrap_servers)
        .replace('["embeddings"]', f'["{user.topics.output}"]')
    )
    said = tmp_path / "said"

    with said.open("wb") as file:
        consumer = subprocess.Popen([sys.executable, "-u", "-c", script], stdout=file)
    try:
        wait_until(lambda: {"cat [0.5", "deleted: b'dog'"} <= _beginnings(said), WORK_TIMEOUT_S, "both are shown")
    finally:
        consumer.kill()
        consumer.wait()

    assert "album" not in said.read_text()


def _beginnings(file: Path) -> set[str]:
    """Return the first two words of each line."""
    return {" ".join(line.split()[:2]) for line in file.read_text().splitlines()}
