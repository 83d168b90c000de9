import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.cli.pictures import LARGEST_BYTES, Pictures, bundled_pictures, fitting, folder_pictures


def _images(pictures: Pictures) -> dict[str, bytes]:
    return {name: pictures.read(name) for name in pictures.names}


def _sizes(pictures: Pictures) -> dict[str, tuple[int, int]]:
    sizes = {}
    for name, file in _images(pictures).items():
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            sizes[name] = image.size
    return sizes


def test_the_bundled_pictures_are_seven_photographs_and_then_eleven_crops_of_each() -> None:
    photographs = ["astronaut", "brick", "cameraman", "cat", "coffee", "galaxies", "retina"]

    names = bundled_pictures().names

    assert names == photographs + [f"{name}-crop-{number:02}" for name in photographs for number in range(1, 12)]


def test_the_bundled_pictures_are_the_same_bytes_every_time() -> None:
    assert _images(bundled_pictures()) == _images(bundled_pictures())


def test_no_two_bundled_pictures_are_the_same() -> None:
    images = _images(bundled_pictures())

    assert len(set(images.values())) == len(images)


def test_the_sides_of_a_crop_are_40_to_80_percent_of_the_photographs() -> None:
    sizes = _sizes(bundled_pictures())

    for name, (width, height) in sizes.items():
        photograph, crop, _ = name.partition("-crop-")
        if crop:
            whole_width, whole_height = sizes[photograph]
            assert 0.4 * whole_width - 1 <= width <= 0.8 * whole_width + 1
            assert 0.4 * whole_height - 1 <= height <= 0.8 * whole_height + 1


def test_a_crop_of_a_grey_photograph_is_grey() -> None:
    crop = bundled_pictures().read("cameraman-crop-01")

    assert Image.open(io.BytesIO(crop)).mode == "L"


def test_every_bundled_photograph_has_its_line_in_the_credits() -> None:
    folder = Path(__file__).parents[2] / "worker" / "cli" / "photographs"
    credits_ = (folder / "CREDITS.md").read_text("utf-8")

    assert [file.name for file in folder.glob("*.jpg") if f"\n| `{file.name}` | " not in credits_] == []


def test_the_image_files_of_a_folder_come_sorted_and_by_their_path_below_it(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    for name in ("b.PNG", "a.jpg", "holiday/sea.WebP", "notes.txt", "archive.jpg.zip"):
        (tmp_path / name).write_bytes(name.encode())

    assert list(_images(folder_pictures(tmp_path)).items()) == [
        ("a.jpg", b"a.jpg"),
        ("b.PNG", b"b.PNG"),
        ("holiday/sea.WebP", b"holiday/sea.WebP"),
    ]


def test_a_folder_named_like_an_image_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / "album.jpg" / "one.jpg").write_bytes(b"1")

    assert _images(folder_pictures(tmp_path)) == {"album.jpg/one.jpg": b"1"}


def test_a_file_is_read_only_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"before")

    pictures = folder_pictures(tmp_path)
    pictures.read("a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"after")

    assert pictures.read("b.jpg") == b"after"


def test_a_folder_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere"):
        folder_pictures(tmp_path / "nowhere")


def test_a_folder_without_an_image_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ValueError, match=rf"no image file below {tmp_path}: none ends in \.jpg, \.jpeg, \.png"):
        folder_pictures(tmp_path)


def _noise(side: int, form: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, form, quality=98)
    return file.getvalue()


def test_a_picture_that_fits_is_left_as_it_is() -> None:
    file = _noise(400, "JPEG")

    assert fitting(file) is file


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_a_picture_that_is_too_large_becomes_a_jpeg_that_fits_whatever_is_on_it(form: str, mode: str) -> None:
    file = _noise(2_000, form, mode)

    fitted = fitting(file)

    assert len(file) > LARGEST_BYTES >= len(fitted)
    with Image.open(io.BytesIO(fitted)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (1600, 1600))


def test_a_large_file_that_is_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="can't be decoded: "):
        fitting(bytes(LARGEST_BYTES + 1))


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_large_picture_that_is_cut_off_is_an_error(cut: float) -> None:
    file = _noise(3_000, "PNG")

    with pytest.raises(ValueError, match="can't be decoded: "):
        fitting(file[: int(cut * len(file))])
