"""`python -m tests.benchmarks.gpu`, or `make bench-gpu`: how fast one GPU is, and what each trick brings to it.

Brings its pictures and its weights along: neither network, nor Java, nor a broker. On the CPU it is a dry run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import torch

from tests.benchmarks.gpu.alone import PART, alone, best_of, tricks
from tests.benchmarks.gpu.copies import copies
from tests.benchmarks.gpu.machine import Machine, device_number
from tests.benchmarks.gpu.pictures import SIDES
from tests.benchmarks.gpu.preparing import decoding, preparation_rate, preparing
from tests.benchmarks.gpu.whole import best_whole, whole
from tests.benchmarks.machine import this_machine
from tests.benchmarks.report import Bound, Measurement, Result, Size, off, show, write_json

GOALS = {PART: 30_000.0, "500×375": 10_000.0, "224×224": 15_000.0}  # images/s, on one H200 with 16 cores
OF_THE_ROOFLINE = 0.9

Part = Callable[[Machine, Size, Callable[[str], None]], Iterator[Result]]

PARTS: Mapping[str, Part] = {
    "alone": alone,
    "preparing": preparing,
    "whole": whole,
    "tricks": tricks,
    "copies": copies,
    "decoding": decoding,
}
_OF_THE_GOALS = ("alone", "preparing", "whole")
JSON = Path(__file__).parents[3] / ".cache" / "bench-gpu.json"


def measure(
    machine: Machine, size: Size, chosen: Sequence[str], say: Callable[[str], None]
) -> Iterator[Sequence[Result]]:
    """Yield the results of each part, and at last those of the goals where there is all that they are made of."""
    results: list[Result] = []
    for name in chosen:
        say(f"{name}:")
        found = list(PARTS[name](machine, size, say))
        results += found
        yield found
    if set(_OF_THE_GOALS) <= set(chosen):
        yield list(goals(machine, results))


def goals(machine: Machine, results: Sequence[Result]) -> Iterator[Result]:
    """Yield the goals, and the roofline of this machine from the same run: limits on CUDA, on the CPU only figures."""
    model = best_of([it for it in results if isinstance(it, Measurement) and it.part == PART])
    whole_of = {name: best_whole(results, name) for name in SIDES}
    at_least = (lambda limit: limit) if machine.is_cuda else (lambda _: None)
    said = "" if machine.is_cuda else ", not checked"
    for name, reached in {PART: model, **whole_of}.items():
        yield Bound("goals", f"{name} ≥ {GOALS[name]:.0f} images/s{said}", [reached / GOALS[name]], at_least(1.0))
    for name, reached in whole_of.items():
        roofline = min(model, preparation_rate(results, name))
        yield Measurement("roofline", f"{name}: min(model, preparation by all cores)", "images/s", [roofline])
        yield Bound("goals", f"{name} of its roofline{said}", [reached / roofline], at_least(OF_THE_ROOFLINE))


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:N, or cpu for a dry run")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="of the time that it takes")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="of which the medians are")
@click.option("--model", default="ViT-B/32", show_default=True, help="an architecture, with random weights")
@click.option("--part", "chosen", type=click.Choice(list(PARTS)), multiple=True, help="repeatable; all unless set")
@click.option("--json", "path", type=click.Path(path_type=Path), default=JSON, help="where the figures go")
def main(device: str, scale: float, rounds: int, model: str, chosen: tuple[str, ...], path: Path) -> None:
    """Measure one GPU; end with 1 where a goal is missed. The figures are written after each part.

    The goals take the parts alone, preparing and whole.
    """
    if device != "cpu":
        if not torch.cuda.is_available():
            raise click.ClickException("no CUDA device; --device cpu --scale 0.01 is the dry run")
        torch.cuda.set_device(device_number(device))
    machine, size, host = Machine(device, model), Size(rounds, scale), this_machine()
    for line in (str(machine), *host.lines()):
        click.echo(line)
    results: list[Result] = []
    for found in measure(machine, size, chosen or tuple(PARTS), lambda what: click.echo(what, err=True)):
        results += found
        write_json(path, {"device": str(machine), "machine": asdict(host), "size": asdict(size)}, results)
    show(results)
    click.echo(f"medians of {rounds} rounds at scale {scale:g}, also in {path}")
    if wrong := off(results):
        raise click.ClickException(f"off: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
