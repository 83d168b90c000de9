"""The figures as a table, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.report import Bound, Measurement, Result


def show(machine: str, results: Sequence[Result]) -> None:
    """Print a row for each."""
    table = Table("part", "what", "median", "least to most", title=machine)
    for result in results:
        table.add_row(result.part, result.name, *_columns(result))
    Console(width=180).print(table)


def write_json(path: Path, machine: str, results: Sequence[Result]) -> None:
    """Write all values."""
    path.write_text(json.dumps({"machine": machine, "results": [asdict(it) for it in results]}, indent=1) + "\n")


def _columns(result: Result) -> tuple[str, str]:
    match result:
        case Measurement():
            least, most = result.spread
            return f"{result.median:,.4g} {result.unit}", f"{least:,.4g} to {most:,.4g}"
        case Bound(at_least=None, at_most=None):
            return f"× {result.ratio:.3f}", ""
        case Bound():
            limit = f"≥ {result.at_least:g}" if result.at_least is not None else f"≤ {result.at_most:g}"
            return f"× {result.ratio:.3f}", f"{limit}: {'holds' if result.holds else 'MISSED'}"
