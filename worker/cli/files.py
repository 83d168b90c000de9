"""The image files below a folder."""

from pathlib import Path

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
