"""`clip-worker run` that notes when each record passes two of its stages, for the latency's split.

Lines of record key, stage and seconds go to the file `STAMPS`. The clock is the system's monotonic one, which all
processes of a machine share. The two places are where a record enters and leaves what the worker does with it:
`Preparer.prepare`, in a prepare thread, and `Outbox.outbound`, just before the producer.
"""

import os
import time
from functools import wraps
from pathlib import Path
from typing import Any

import click

import worker.cli.run
from worker.cli.options import settings_options
from worker.outbound import Outbox
from worker.prepare import Preparer
from worker.settings import read_settings

STAMPS = "STAMPS"
MODULE = (__name__,)
PREPARING, PREPARED, HANDED_ON = "preparing", "prepared", "handed-on"


def _note_stages(file: Path) -> None:
    stamps = file.open("ab", buffering=0)
    prepare, outbound = Preparer.prepare, Outbox.outbound

    def note(key: bytes | None, stage: str) -> None:
        stamps.write(b"%s %s %.6f\n" % (key, stage.encode(), time.monotonic()))

    @wraps(prepare)
    def noted_prepare(self: Preparer, record: Any, *more: Any) -> Any:  # noqa: ANN401 - passed on as they are
        note(record.key, PREPARING)
        prepared = prepare(self, record, *more)
        note(record.key, PREPARED)
        return prepared

    @wraps(outbound)
    def noted_outbound(self: Outbox, outcome: Any) -> Any:  # noqa: ANN401
        note(outcome.record.key, HANDED_ON)
        return outbound(self, outcome)

    setattr(Preparer, "prepare", noted_prepare)  # noqa: B010 - mypy knows it as a method
    setattr(Outbox, "outbound", noted_outbound)  # noqa: B010


@click.command()
@settings_options()
def command(**flags: object) -> None:
    """Run the worker."""
    _note_stages(Path(os.environ[STAMPS]))
    worker.cli.run.run(read_settings(flags))
