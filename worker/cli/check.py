"""`clip-worker check`: look at everything that run needs, and say what is wrong and how to mend it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import click
import numpy as np
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.options import settings_options
from worker.cli.run import load_encoder
from worker.clients import check_properties, tool_admin
from worker.encoder import Encoder
from worker.errors import DeviceError, WorkerError
from worker.nvjpeg import nvjpeg_decoder
from worker.processor import bf16_unit
from worker.settings import Settings, read_settings
from worker.slots import Wait
from worker.topics import MAX_BYTES, LimitsQuestion, find_topics, needed_message_bytes

_ANSWER_S = 10.0
_TIMED_BATCHES = 6
_WORTH_RECOMMENDING = 1.2


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it; `fine` None where it can't be known."""

    what: str
    fine: bool | None
    said: str


@click.command("check")
@settings_options()
def command(**flags: object) -> None:
    """Look at everything that run needs, and say what is wrong and how to mend it; exit 1 where something is."""
    settings = read_settings(flags)
    findings = [Finding("settings", fine=True, said="read, and fit together"), *_look_at_broker(settings)]
    findings += _carefully(_look_at_model, settings)
    Console().print(_table(findings))
    wrong = [finding.what for finding in findings if finding.fine is False]
    if wrong:
        raise click.ClickException(f"run would not work: {', '.join(wrong)}")
    unknown = [finding.what for finding in findings if finding.fine is None]
    click.echo(
        "run has all it needs" + (f", as far as the broker says; unknown: {', '.join(unknown)}" if unknown else "")
    )


def _look_at_broker(settings: Settings) -> Iterator[Finding]:
    """Look at one after the other, until one is found without which the next can't be looked at."""
    for look in (_look_at_properties, _look_at_topics):
        for finding in _carefully(look, settings):
            yield finding
            if not finding.fine:
                return
    yield from _carefully(_look_at_limits, settings)
    yield from _carefully(_look_at_rights, settings)


def _carefully(look: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """Turn what a look raises into a finding, so that the others are looked at too."""
    what = look.__name__.removeprefix("_look_at_")
    try:
        yield from look(settings)
    except WorkerError as error:
        yield Finding(what, fine=False, said=str(error))
    except KafkaException as exception:
        yield Finding(what, fine=None, said=f"the broker doesn't say: {exception.args[0].str()}")


def _look_at_properties(settings: Settings) -> Iterator[Finding]:
    check_properties(settings)
    names = ", ".join(sorted(settings.kafka_properties))  # some of the values are secrets
    yield Finding("properties", fine=True, said=names or "librdkafka's are the worker's own")


def _look_at_topics(settings: Settings) -> Iterator[Finding]:
    partitions = find_topics(tool_admin(settings), settings)
    yield Finding("broker", fine=True, said=settings.bootstrap_servers)
    yield Finding(
        "topics", fine=True, said=", ".join(f"{name} ({count} partitions)" for name, count in partitions.items())
    )


def _look_at_limits(settings: Settings) -> Iterator[Finding]:
    needed = needed_message_bytes(settings)
    for topic, limits in LimitsQuestion(tool_admin(settings), list(needed)).wait_for_limits().items():
        fits = limits.max_message_bytes >= needed[topic]
        said = f"{MAX_BYTES}={limits.max_message_bytes}"
        if not fits:
            said += f" is under {needed[topic]}, the largest record with MAX_IMAGE_BYTES={settings.max_image_bytes}: "
            said += "`clip-worker topics` raises it"
        yield Finding(f"limits of {topic}", fine=fits, said=said)


def _look_at_rights(settings: Settings) -> Iterator[Finding]:
    admin = tool_admin(settings)
    needed = {
        settings.input_topic: AclOperation.READ,
        settings.output_topic: AclOperation.WRITE,
        settings.dead_letter_topic: AclOperation.WRITE,
    }
    answers = admin.describe_topics(
        TopicCollection(list(needed)), include_authorized_operations=True, request_timeout=_ANSWER_S
    )
    for topic, answer in answers.items():
        yield _right(f"topic {topic}", needed[topic], answer.result().authorized_operations)
    groups = admin.describe_consumer_groups(
        [settings.group_id], include_authorized_operations=True, request_timeout=_ANSWER_S
    )
    yield _right(
        f"group {settings.group_id}", AclOperation.READ, groups[settings.group_id].result().authorized_operations
    )
    if settings.delivery == "exactly-once" and settings.transactional_id is not None:
        what = f"right on transactional id {settings.transactional_id}"
        yield Finding(what, fine=None, said="no request tells it: WRITE and DESCRIBE are needed")


def _right(what: str, needed: AclOperation, granted: list[AclOperation] | None) -> Finding:
    if granted is None:
        return Finding(f"right on {what}", fine=None, said="the broker doesn't say")
    fine = needed in granted or AclOperation.ALL in granted
    said = needed.name if fine else f"{needed.name} is missing: kafka-acls --add --operation {needed.name.title()} …"
    return Finding(f"right on {what}", fine=fine, said=said)


def _look_at_model(settings: Settings) -> Iterator[Finding]:
    encoder = load_encoder(settings)
    yield Finding("model", fine=True, said=encoder.model_name)
    max_batch = settings.max_batch or encoder.default_max_batch
    rate = _images_s(encoder, max_batch)
    said = f"{encoder.device_name} in {encoder.precision}, {rate:.0f} images/s in batches of {max_batch}"
    yield Finding("device", fine=True, said=said)
    if settings.decoder == "nvjpeg":
        nvjpeg_decoder(encoder.device_name)
        yield Finding("decoder", fine=True, said="nvjpeg")

    def bf16_to_fp32() -> float:
        return _images_s(load_encoder(settings.model_copy(update={"precision": "bf16"})), max_batch) / rate

    yield from advise_precision(settings.precision, encoder.device_name, bf16_unit(), bf16_to_fp32)


def _images_s(encoder: Encoder, batch: int) -> float:
    """Return how many images a second go in batches that begin as `run` lets them."""
    encoder.warm_up(batch)
    pixels, side = encoder.allocate(batch), encoder.model_input.size
    pixels[:] = 0
    none = np.empty((0, side, side, 3), np.float32)
    under_way: deque[Wait] = deque()
    begun_s = time.perf_counter()
    for _ in range(_TIMED_BATCHES):
        if len(under_way) == encoder.depth:
            under_way.popleft()()
        under_way.append(encoder.begin(pixels, none))
    for wait in under_way:
        wait()
    return batch * _TIMED_BATCHES / (time.perf_counter() - begun_s)


def advise_precision(
    precision: str, device: str, unit: str | None, bf16_to_fp32: Callable[[], float]
) -> Iterator[Finding]:
    """Say how much faster bf16 is where the processor has a `unit` for it and nobody has chosen.

    `bf16_to_fp32` measures it: Intel's AVX512-BF16 without AMX does half of what fp32 does, AMD's twice as much.
    """
    if precision != "auto" or device != "cpu" or unit is None:
        return
    try:
        times = bf16_to_fp32()
    except DeviceError as error:  # which is none of `run`, as it is set
        yield Finding("precision", fine=True, said=f"fp32; {error}")
        return
    if times >= _WORTH_RECOMMENDING:
        said = f"fp32 by default; PRECISION=bf16 is {times:.1f} times as fast with this processor's {unit}"
    else:
        said = f"fp32; bf16 is only {times:.1f} times as fast, though this processor has {unit}"
    yield Finding("precision", fine=True, said=said)


def _table(findings: list[Finding]) -> Table:
    marks: Mapping[bool | None, Text] = {
        True: Text("fine", "green"),
        False: Text("wrong", "bold red"),
        None: Text("unknown", "yellow"),
    }
    table = Table("", "", "", box=None, show_header=False)
    for finding in findings:
        table.add_row(marks[finding.fine], Text(finding.what), Text(finding.said))
    return table
