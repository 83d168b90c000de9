"""What the embeddings are good for: each picture's nearest neighbours, in the terminal and on a page of HTML."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table
from rich.text import Text

from worker.cli.pictures import shrink

Embeddings = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Similarities = npt.NDArray[np.float32]

_BLOCK = 512  # queries at a time: with 20,000 pictures their similarities are 40 MB
_NAME_CHARACTERS = 18  # of a name in the terminal: four columns fit into 80, five into 100
_THUMBNAIL_PIXELS = 160


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A picture near another one, and the cosine similarity of their embeddings, from -1 to 1."""

    name: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Row:
    """A picture, and its neighbours from the nearest to the farthest."""

    name: str
    neighbours: tuple[Neighbour, ...]


def nearest(embeddings: Embeddings, k: int) -> tuple[Indices, Similarities]:
    """Return each picture's nearest others by cosine similarity, the nearest first.

    `embeddings` is float32 [N, D], of any length; an embedding of zeros has the similarity 0 to all.
    Returns indices, int64 [N, K], and similarities, float32 [N, K], where K is the lesser of k and N - 1.
    """
    count = len(embeddings)
    k = max(0, min(k, count - 1))
    indices = np.zeros((count, k), np.int64)
    similarities = np.zeros((count, k), np.float32)
    if k == 0:
        return indices, similarities
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(lengths > 0, lengths, 1)
    for begin in range(0, count, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        found = unit[block] @ unit.T
        queries = np.arange(len(found))
        found[queries, begin + queries] = -np.inf
        top = np.argpartition(found, -k, axis=1)[:, -k:]
        values = np.take_along_axis(found, top, axis=1)
        order = np.argsort(-values, axis=1)
        indices[block] = np.take_along_axis(top, order, axis=1)
        similarities[block] = np.take_along_axis(values, order, axis=1)
    return indices, similarities


def neighbour_rows(names: Sequence[str], indices: Indices, similarities: Similarities) -> list[Row]:
    """Put the names to what `nearest` returned: int64 [N, K] and float32 [N, K], or the first rows of both."""
    found = zip(indices.tolist(), similarities.tolist(), strict=True)
    return [
        Row(names[query], tuple(Neighbour(names[at], value) for at, value in zip(*row, strict=True)))
        for query, row in enumerate(found)
    ]


def neighbour_table(names: Sequence[str], indices: Indices, similarities: Similarities, limit: int) -> Table:
    """Return a table of the first `limit` pictures and their neighbours: int64 [N, K] and float32 [N, K].

    Three neighbours fit into a terminal of 80 columns, four into 100. Of a long name the end is shown.
    """
    table = Table("picture", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for rank in range(1, indices.shape[1] + 1):
        table.add_column(f"neighbour {rank}")
    for row in neighbour_rows(names, indices[:limit], similarities[:limit]):
        near = (
            Text.assemble(_shorten(neighbour.name), "\n", (f"{neighbour.similarity:.4f}", "dim"))
            for neighbour in row.neighbours
        )
        table.add_row(Text(_shorten(row.name), "bold"), *near)
    if limit < len(names):
        table.caption = f"{limit:,} of {len(names):,} pictures"
    return table


def write_page(
    path: Path,
    rows: Sequence[Row],
    read: Callable[[str], bytes],
    *,
    title: str,
    facts: Mapping[str, str],
    warning: str | None,
    limit: int,
) -> None:
    """Write the first `limit` rows into one HTML file that needs nothing else, with a thumbnail of every picture.

    `read` returns the image file of a name; where it raises `OSError` or the file is no image, the picture is a grey
    tile. `facts` stand below the title, `warning` in a banner above all rows. Raises: `OSError`.
    """
    # A command that writes no page does without.
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415

    shown = rows[:limit]
    names = dict.fromkeys(name for row in shown for name in (row.name, *(near.name for near in row.neighbours)))
    tiles = {name: number for number, name in enumerate(names)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("worker.cli").joinpath("page.html.jinja").read_text("utf-8"))
    page = template.render(
        title=title,
        facts=facts,
        warning=warning,
        rows=shown,
        total=len(rows),
        tiles=tiles,
        thumbnails={number: _data_uri(read, name) for name, number in tiles.items()},
    )
    path.write_text(page, "utf-8")


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else "…" + name[1 - _NAME_CHARACTERS :]


def _data_uri(read: Callable[[str], bytes], name: str) -> str | None:
    try:
        image = read(name)
    except OSError:
        return None
    try:
        thumbnail = shrink(image, _THUMBNAIL_PIXELS)
    except Exception:  # noqa: BLE001 - decoders raise anything from OSError to SyntaxError, struct.error and IndexError
        return None
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail).decode()
