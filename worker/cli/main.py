"""`clip-worker`: the list of commands. Each is loaded only when it is called, with the extra that it needs."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import click

from worker.errors import WorkerError


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command: its module's name is its own; `extra` is what brings the packages that it imports."""

    extra: str
    help: str


_COMMANDS = {
    "run": _Entry("worker", "The worker: consume, embed, produce until SIGTERM or SIGINT."),
    "demo": _Entry("worker", "The whole path on this machine, with an embedded broker."),
    "topics": _Entry("kafka", "Make the three topics with fitting limits, or mend their limits."),
    "check": _Entry("worker", "Look at everything that run needs, and say what is wrong."),
    "publish": _Entry("kafka", "Images, from files and folders, into the input topic."),
    "consume": _Entry("kafka", "Embeddings from the output topic into a file or onto the screen."),
    "replay": _Entry("kafka", "Dead letters back into the input topic, all or by reason."),
}
_OWN_PACKAGES = ("worker", "schemas")


class _Group(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        try:
            found: click.Command = import_module(f"worker.cli.{name}").command
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in _OWN_PACKAGES:
                raise
            extra = _COMMANDS[name].extra
            raise click.ClickException(
                f"`clip-worker {name}` needs {error.name}: pip install 'clip-worker[{extra}]'"
            ) from error
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in _COMMANDS.items()])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="clip-worker")
def group() -> None:
    """Turn images in Kafka into CLIP embeddings in Kafka."""


def main() -> None:
    """Run the command; end with the error's own exit code."""
    try:
        group()
    except WorkerError as error:
        _say(f"{type(error).__name__}: {error}")
        # A thread that hangs in native code would keep the interpreter from ending.
        os._exit(error.exit_code)


def _say(message: str) -> None:
    say: Callable[[str], object] = logging.getLogger("worker").critical
    if not logging.getLogger().handlers:
        say = lambda line: click.echo(line, err=True)  # noqa: E731
    say(message)
    sys.stdout.flush()
    logging.shutdown()
