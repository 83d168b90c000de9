"""How far `fast` is from `reference`: `python -m tests.images.departure`, or `make departure`.

By the embeddings of photographs, centred (less the mean of all), as nothing that photographs have in common is told
apart then; and by the pixels. Of ViT-B/32 with untrained weights, so take the cosines as their order of magnitude.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.unit.pictures_for_tests import FORMS, MAX_PIXELS, PHOTOGRAPHS, encode, normalised, photograph, turned
from worker.images import Fast, Reference
from worker.records import Pixels
from worker.weights import Model, load_model

FORMS_COMPARED: Mapping[str, Callable[[Image.Image], bytes]] = {
    "JPEG": FORMS["jpeg-420"],
    "JPEG in CMYK": FORMS["jpeg-cmyk"],
    "PNG with a palette": FORMS["png-palette"],
    "JPEG lying on its side (EXIF 6)": lambda picture: encode(picture, "JPEG", exif=turned(6)),
    "PNG with alpha from 0 to 255": FORMS["png-rgba"],
    "PNG, grey of 16 bits": FORMS["png-16-bit-grey"],
}

Vectors = npt.NDArray[np.float32]


def _embed(model: Model, images: list[Pixels]) -> Vectors:
    vectors: Vectors = model.tower(torch.stack([normalised(pixels) for pixels in images])).numpy()
    return vectors


def _cosines(one: Vectors, other: Vectors) -> Vectors:
    cosines: Vectors = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return cosines


def main() -> None:
    """Print a table."""
    warnings.simplefilter("ignore", UserWarning)
    model = load_model("ViT-B/32", "random")
    fast, reference = (kind(model.input, model.geometry, MAX_PIXELS) for kind in (Fast, Reference))
    pictures = [photograph(name) for name in PHOTOGRAPHS]
    centre = _embed(model, [reference(FORMS["jpeg-420"](picture)) for picture in pictures]).mean(0)
    table = Table("file", "cosine, least of all", "furthest value", "in the mean")
    for name, write in FORMS_COMPARED.items():
        files = [write(picture) for picture in pictures]
        theirs, ours = [reference(file) for file in files], [fast(file) for file in files]
        cosine = _cosines(_embed(model, ours) - centre, _embed(model, theirs) - centre).min()
        levels = np.abs(np.array(ours).astype(int) - np.array(theirs))
        table.add_row(name, f"{cosine:.7f}", f"{levels.max()}", f"{levels.mean():.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
