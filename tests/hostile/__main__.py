"""`python -m tests.hostile`, or `make hostile`: what records that are made to hurt cost, as the README's table."""

import json
from dataclasses import asdict

import click

from tests.hostile.measures import KINDS, measure_all


@click.command()
@click.option("--kind", type=click.Choice(list(KINDS)), help="of preprocessing; both, as a table, unless set")
def main(kind: str | None) -> None:
    """Print a line of JSON for each record, or the table."""
    if kind is not None:
        for cost in measure_all(kind):
            click.echo(json.dumps(asdict(cost)))
        return
    fast, reference = ({cost.bomb: cost for cost in measure_all(kind)} for kind in KINDS)
    click.echo("| record | outcome | CPU, `fast` / `reference` | memory |\n| --- | --- | --- | --- |")
    for bomb, cost in fast.items():
        other = reference[bomb]
        outcome = f"`{cost.outcome}`" if cost.outcome.islower() else "embedded"
        memory_mb = max(cost.memory_mb, other.memory_mb)
        click.echo(f"| {bomb} | {outcome} | {cost.cpu_ms:.0f} / {other.cpu_ms:.0f} ms | {memory_mb:.0f} MB |")


if __name__ == "__main__":
    main()
