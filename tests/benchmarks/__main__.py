"""`python -m tests.benchmarks`, or `make bench`: what it costs and how fast it is, on the machine that is named.

Ends with 1 where a bound is off.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from tests.benchmarks.latency import latency
from tests.benchmarks.machine import this_machine
from tests.benchmarks.overhead import overhead
from tests.benchmarks.parts import parts
from tests.benchmarks.profiles import profile
from tests.benchmarks.report import Result, Size, off, show, write_json
from tests.benchmarks.scale import scale as scaling
from tests.benchmarks.start import start
from tests.benchmarks.whole import whole

Part = Callable[[Size, Callable[[str], None]], Iterator[Result]]

PARTS: Mapping[str, Part] = {
    "parts": parts,
    "start": start,
    "overhead": overhead,
    "whole": whole,
    "latency": latency,
    "scale": scaling,
    "profile": profile,
}
JSON = Path(__file__).parents[2] / ".cache" / "bench.json"


@click.command()
@click.option("--part", "chosen", type=click.Choice(list(PARTS)), multiple=True, help="repeatable; all unless set")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="of what is timed")
@click.option(
    "--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="1 is the real run"
)
@click.option("--json", "file", type=click.Path(path_type=Path), default=JSON, help="where the figures go")
def main(chosen: tuple[str, ...], rounds: int, scale: float, file: Path) -> None:
    """Measure, print the tables, and write them as JSON."""
    machine, size = this_machine(), Size(rounds, scale)
    for line in machine.lines():
        click.echo(line)
    results: list[Result] = []
    for name in chosen or PARTS:
        results += PARTS[name](size, partial(_say, name))
        write_json(file, {"machine": asdict(machine), "size": asdict(size)}, results)
    show(results)
    click.echo(f"medians of {rounds} rounds at scale {scale:g}, also in {file}")
    if wrong := off(results):
        raise click.ClickException(f"off: {', '.join(wrong)}")


def _say(part: str, line: str) -> None:
    click.echo(f"{part}: {line}")


if __name__ == "__main__":
    main()
