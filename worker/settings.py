"""Every setting of the worker, read once from `WORKER_*` variables and flags, checked at start."""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.document import TraversalPaths, parse_traversal
from worker.errors import SettingsError
from worker.processor import usable_cores

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "WORKER_"
DEFAULT_HTTP_PORT = 9464

# What a guarantee rests on can't be set; aliases are named too.
RESERVED_PROPERTIES = re.compile(
    r"group\.id|bootstrap\.servers|metadata\.broker\.list|enable\.auto\..*|auto\.commit\.enable"
    r"|(request\.required\.)?acks|enable\.idempotence|transactional\.id|isolation\.level"
    r"|delivery\.report\.only\.error|enable\.partition\.eof|statistics\.interval\.ms"
)

# What Kubernetes injects for a service named `worker` or `worker-…`: WORKER_SERVICE_HOST,
# WORKER_SERVICE_PORT[_NAME], WORKER_PORT[_9464_TCP[_PROTO|_PORT|_ADDR]].
_SERVICE_LINK_NAME = re.compile(
    r"WORKER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://.+:\d+")


def _without_service_link(value: object) -> object:
    """Give the default for what Kubernetes injects as WORKER_HTTP_PORT for a service named `worker-http`."""
    return DEFAULT_HTTP_PORT if isinstance(value, str) and _SERVICE_LINK_URL.fullmatch(value) else value


def _traversal(text: str) -> str:
    parse_traversal(text)
    return text


Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Topic = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")]


class Settings(BaseSettings):
    """The settings, immutable. Sizes take a unit (`16MiB`), times are in the unit of their name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    bootstrap_servers: Name = Field(description="Kafka brokers, host:port, separated by commas")
    group_id: Name = Field("clip-worker", description="consumer group")
    input_topic: Topic = Field("documents", description="topic of document records")
    output_topic: Topic = Field("embeddings", description="topic of embedding records")
    dead_letter_topic: Topic = Field("dead-letters", description="topic of rejected records")

    delivery: Literal["at-least-once", "exactly-once"] = Field("at-least-once", description="delivery guarantee")
    checkpoint_interval_s: Seconds = Field(1.0, description="seconds between checkpoints")
    checkpoint_records: PositiveInt = Field(
        10_000, description="records after which a checkpoint is made before its time"
    )
    transactional_id: Name | None = Field(
        None, description="transactional id under exactly-once; unique to the process unless set"
    )

    model: Name = Field("ViT-B/32", description="OpenAI's name or an architecture of open_clip")
    weights: Name = Field("openai", description="pretrained tag, a local file or folder, or random")
    activation: Literal["auto", "quick_gelu", "gelu"] = Field(
        "auto", description="auto, or quick_gelu or gelu where the weights don't say it"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="auto, cpu, cuda or cuda:N"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto is fp16 on CUDA and fp32 on CPU"
    )
    max_batch: Annotated[int, Field(gt=0, le=16_384)] | None = Field(
        None, description="images a batch; 8 on CPU, 256 on CUDA unless set"
    )
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)] = Field(
        0.0, description="milliseconds to wait for more images while the device is free"
    )

    prepare_threads: Annotated[int, Field(gt=0, le=1_024)] = Field(
        default_factory=usable_cores, description="threads that decode and resize; the number of cores unless set"
    )
    preprocessing: Literal["fast", "reference"] = Field(
        "fast", description="fast, or reference: open_clip's own transform bit for bit"
    )
    decoder: Literal["cpu", "nvjpeg"] = Field(
        "cpu", description="cpu, or nvjpeg: plain JPEGs are decoded and resized on the GPU"
    )
    normalize: bool = Field(default=False, description="scale embeddings to L2 norm 1")
    traversal_paths: Annotated[str, AfterValidator(_traversal)] = Field(
        "r", description="where images are: r the root, c its chunks, cc theirs; separated by commas"
    )

    max_image_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        ByteSize(16 * 2**20), description="largest image file or array"
    )
    max_image_pixels: PositiveInt = Field(50_000_000, description="largest width times height of an image")
    max_images_per_record: PositiveInt = Field(64, description="images in one record")
    in_flight_images: Annotated[int, Field(gt=0, le=1_000_000)] | None = Field(
        None,
        description="most records in flight, and prepared images; 4 batches and at least one record's unless set",
    )
    in_flight_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        ByteSize(256 * 2**20), description="bytes of records taken in and not finished"
    )

    max_rejected_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of dead letters, over the window, at which the worker stops; no limit unless set"
    )
    rejected_share_window: PositiveInt = Field(1_000, description="the last records that this share is taken over")
    max_rejected_in_a_row: PositiveInt | None = Field(
        None, description="dead letters one after the other at which the worker stops; no limit unless set"
    )

    drain_timeout_s: Seconds = Field(30.0, description="seconds that a stop may take to finish what is in flight")
    stall_timeout_s: Seconds = Field(60.0, description="seconds without progress before the process is ended")

    http_host: str = Field("", description="address of /metrics, /livez, /readyz; all unless set")
    http_port: Annotated[int, BeforeValidator(_without_service_link), Field(ge=0, le=65535)] = Field(
        DEFAULT_HTTP_PORT, description="their port; 0 picks one"
    )
    log_format: Literal["text", "json"] | None = Field(
        None, description="text or json; text on a terminal, else json, unless set"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")

    kafka: dict[str, str] = Field(
        default_factory=dict,
        description="any librdkafka property: WORKER_KAFKA__SECURITY_PROTOCOL=SSL, or --kafka security.protocol=SSL",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        topics = {name: getattr(self, name) for name in ("input_topic", "output_topic", "dead_letter_topic")}
        if len(set(topics.values())) < len(topics):
            named = ", ".join(f"{PREFIX}{name.upper()}={topic}" for name, topic in topics.items())
            raise ValueError(f"the three topics must differ: {named}")
        if self.in_flight_images is not None and self.in_flight_images < self.max_images_per_record:
            raise ValueError(
                f"{PREFIX}IN_FLIGHT_IMAGES={self.in_flight_images} is less than "
                f"{PREFIX}MAX_IMAGES_PER_RECORD={self.max_images_per_record}: those of a record are in flight together"
            )
        if self.decoder == "nvjpeg" and self.preprocessing == "reference":
            raise ValueError(
                f"{PREFIX}DECODER=nvjpeg doesn't go with {PREFIX}PREPROCESSING=reference, which nvJPEG isn't to the bit"
            )
        for name, value in self.kafka_properties.items():
            if RESERVED_PROPERTIES.fullmatch(name):
                raise ValueError(
                    f"kafka property {name}={value} can't be set: a guarantee or another setting rests on it"
                )
        return self

    @property
    def kafka_properties(self) -> dict[str, str]:
        """Return the librdkafka properties by their own names: `security_protocol` is `security.protocol`."""
        return {name.lower().replace("_", "."): value for name, value in self.kafka.items()}

    @property
    def default_paths(self) -> TraversalPaths:
        """Return the depths that the default traversal paths lead to."""
        return parse_traversal(self.traversal_paths)


def read_settings(flags: Mapping[str, object]) -> Settings:
    """Read the settings from `flags`, which win, and from the environment.

    Raises: `SettingsError` that names every wrong one with its value and what is allowed.
    """
    ours = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    unknown = sorted(name for name, value in ours.items() if not _known(name, value))
    if unknown:
        raise SettingsError(f"unknown variables: {', '.join(unknown)}; see the settings in the README")
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(problem) for problem in error.errors())) from error


def _known(name: str, value: str) -> bool:
    setting = name.removeprefix(PREFIX).lower()
    if name == name.upper() and (setting.startswith("kafka__") or setting in Settings.model_fields.keys() - {"kafka"}):
        return True
    return bool(_SERVICE_LINK_NAME.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_LINK_URL.fullmatch(value)))


# What pydantic's own messages leave unsaid.
_ALLOWED = {
    "bool_parsing": "true or false",
    "byte_size": "a positive size in bytes, or with a unit, such as 16MiB",
    "byte_size_unit": "a positive size in bytes, or with a unit, such as 16MiB",
}


def _describe(problem: "ErrorDetails") -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    if problem["type"] in _ALLOWED:
        message = f"takes {_ALLOWED[problem['type']]}"
    name = PREFIX + "__".join(str(part) for part in problem["loc"]).upper()
    if problem["type"] == "missing":
        return f"{name} is required"
    return f"{name}={problem['input']}: {message}"
