"""The files that commands read, image files below a folder, and those that they write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What the name of an image file ends in, in lower case."""


def image_files(folder: Path) -> list[Path]:
    """Return the paths of every image file below the folder, sorted.

    Raises: `FileNotFoundError` where there is no such folder, `ValueError` where it has no image file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"no image file below {folder}: none ends in {', '.join(SUFFIXES)}")
    return paths


def name_of(path: Path) -> str:
    """Return the path with slashes, and with � in place of what is not UTF-8."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write to, which takes its name once it is whole.

    Raises: `ClickException` where it can't be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.touch()
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror or error}") from error
