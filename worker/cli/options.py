"""The settings as flags: `WORKER_MAX_BATCH` is `--max-batch`."""

from collections.abc import Callable
from functools import wraps

import click
from pydantic.fields import FieldInfo

from worker.settings import PREFIX, Settings

Flags = dict[str, object]


def settings_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these settings, of all where none is named, and pass on those that were given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_given(**arguments: object) -> None:
            command(**{name: value for name, value in arguments.items() if value is not None and value != ()})

        decorated: Callable[..., None] = with_given
        for name in reversed(names or tuple(Settings.model_fields)):
            decorated = _option(name, Settings.model_fields[name])(decorated)
        return decorated

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + name.replace("_", "-")
    if name == "kafka":
        return click.option(
            flag,
            multiple=True,
            metavar="PROPERTY=VALUE",
            callback=lambda _, __, pairs: dict(map(_property, pairs)) or None,
            help=f"{field.description}; may be given several times",
        )
    text = f"{field.description}  [{PREFIX}{name.upper()}{_default(field)}]"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    return click.option(flag, metavar="TEXT", help=text)


def _property(pair: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{pair!r} is not PROPERTY=VALUE")
    return name, value


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    return "" if field.default in (None, "") or field.default_factory else f"; {field.default}"
