"""Mistakes that give vectors which look fine and are wrong: each is made, and the suite's own test sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import worker.decode
import worker.fit
from tests.images import test_formats as formats
from tests.images import test_shapes as shapes
from tests.images.formats import VARIANTS
from tests.unit import test_images as images
from tests.unit.pictures_for_tests import MAX_PIXELS, geometry, model_input
from worker.decode import Decoder
from worker.fit import Fit
from worker.images import Fast, Reference
from worker.records import Pixels

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`target`'s `name` becomes `mutated`, made of what it was; `check` is a test that must see it."""

    target: object
    name: str
    mutated: Callable[..., object]
    check: Check


def _fast() -> Fast:
    return Fast(model_input(), geometry(), MAX_PIXELS)


def _reference() -> Reference:
    return Reference(model_input(), geometry(), MAX_PIXELS)


def _shows(form: str) -> Check:
    return lambda: images.test_fast_shows_what_a_person_sees(form, "coffee", _fast())


def _turns(kind: str, orientation: int) -> Check:
    return lambda: images.test_fast_turns_a_picture_as_its_exif_data_says(kind, orientation, _fast())


def _is_open_clips(form: str) -> Check:
    return lambda: images.test_reference_is_open_clips_own_transform(form, "coffee", _reference())


def _fits(width: int, height: int, **changed: object) -> Check:
    return lambda: shapes.test_fast_is_near_pillow(shapes.photo, width, height, changed)


def _fits_noise(width: int, height: int, **changed: object) -> Check:
    return lambda: shapes.test_fast_is_near_pillow(shapes.noise, width, height, changed)


def _decodes(variant: str) -> Check:
    return lambda: formats.test_a_person_would_see_what_is_decoded(next(it for it in VARIANTS if str(it) == variant))


# The mistakes. Each takes what it replaces.


def _convert_first(fit_image: Callable[[Fit, Image.Image], Image.Image]) -> Callable[[Fit, Image.Image], Image.Image]:
    return lambda self, image: fit_image(self, image.convert("RGB"))


def _without_antialiasing(_: object) -> Callable[[torch.Tensor, tuple[int, int], object, str], torch.Tensor]:
    return lambda pixels, to, _kept, interpolation: interpolate(pixels, to, mode=interpolation)


def _bgr(decode: Callable[..., Pixels | None]) -> Callable[..., Pixels | None]:
    def decoded(*arguments: object) -> Pixels | None:
        rgb = decode(*arguments)
        return None if rgb is None else np.ascontiguousarray(rgb[..., ::-1])

    return decoded


def _always(value: object) -> Callable[[object], object]:
    return lambda _: lambda *_arguments: value


def _off_by_one(centre: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda length, size: max(0, centre(length, size) - 1)


def _rounded(_: object) -> Callable[[int, int, int], int]:
    return lambda width, height, size: round(size * max(width, height) / min(width, height))


def _left_for_right(upright: dict[int, object]) -> dict[int, object]:
    return upright | {6: upright[8], 8: upright[6]}


def _without_alpha(as_seen: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, data: image.convert("RGB") if image.has_transparency_data else as_seen(image, data)


def _second_frame(as_seen: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    def seen(image: Image.Image, data: bytes) -> Image.Image:
        image.seek(1)
        return as_seen(image, data)

    return seen


def _clipped(_: object) -> Callable[..., Pixels]:
    return lambda grey, _mode: np.clip(grey, 0, 255).astype(np.uint8)


def _ink_for_light(as_seen: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, data: Image.fromarray(255 - np.asarray(as_seen(image, data)))


MUTANTS = {
    "reference converts before it resizes": Mutant(Fit, "fit_image", _convert_first, _is_open_clips("png-palette")),
    "reference converts before it resizes, alpha": Mutant(
        Fit, "fit_image", _convert_first, _is_open_clips("png-grey-alpha")
    ),
    "fast without antialiasing": Mutant(worker.fit, "_interpolate", _without_antialiasing, _fits(290, 640)),
    "fast takes BGR of a JPEG": Mutant(Decoder, "_decode_plain_jpeg", _bgr, _shows("jpeg-420")),
    "fast takes BGR of a PNG": Mutant(Decoder, "decode", _bgr, _shows("png-rgb")),
    "fast ignores EXIF": Mutant(worker.decode, "_orientation", _always(1), _turns("JPEG", 6)),
    "fast ignores EXIF of a WebP": Mutant(worker.decode, "_orientation", _always(1), _turns("WEBP", 3)),
    "fast looks for no EXIF in a JPEG": Mutant(worker.decode, "_may_be_turned", _always(False), _turns("JPEG", 2)),
    "fast looks for no XMP in a JPEG": Mutant(
        worker.decode,
        "_may_be_turned",
        _always(False),
        lambda: images.test_fast_turns_a_jpeg_whose_xmp_data_says_so(_fast()),
    ),
    "fast turns left for right": Mutant(worker.decode, "_UPRIGHT", _left_for_right, _turns("JPEG", 6)),
    "fast crops a pixel off the centre": Mutant(worker.fit, "_centre", _off_by_one, _fits(1000, 225)),
    "fast crops a pixel off the centre of a high picture": Mutant(worker.fit, "_centre", _off_by_one, _fits(290, 640)),
    "a very long picture is cropped off its centre": Mutant(
        worker.fit,
        "_centre",
        _off_by_one,
        lambda: shapes.test_a_middle_that_is_resized_alone_is_that_of_the_whole(Reference, "RGB", 3, 700),
    ),
    "fast rounds the longer side": Mutant(worker.fit, "_resized_long_side", _rounded, _fits(225, 1000)),
    "fast begins with the width always": Mutant(worker.fit, "height_goes_first", _always(False), _fits(290, 640)),
    "fast begins with the height always": Mutant(worker.fit, "height_goes_first", _always(True), _fits(1000, 225)),
    "fast leaves all of bilinear to torch": Mutant(
        worker.fit, "_ties", _always(0), _fits_noise(192, 192, interpolation="bilinear", resize_mode="squash")
    ),
    "nothing is done for a line that vanishes": Mutant(
        worker.fit,
        "_vanishes",
        _always(False),
        lambda: shapes.test_a_line_is_a_line_where_open_clip_makes_it_vanish(Reference, 1, 10_000, "bicubic"),
    ),
    "fast drops alpha": Mutant(worker.decode, "_as_seen", _without_alpha, _shows("png-rgba")),
    "fast drops a palette's transparency": Mutant(
        worker.decode, "_as_seen", _without_alpha, _shows("png-palette-translucent")
    ),
    "fast shows the second frame": Mutant(worker.decode, "_as_seen", _second_frame, _shows("webp-animated")),
    "fast clips 16 bits": Mutant(worker.decode, "_eight_bits", _clipped, _shows("png-16-bit-grey")),
    "fast takes ink for light": Mutant(worker.decode, "_as_seen", _ink_for_light, _decodes("JPEG, Adobe YCCK")),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mistake_is_seen(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.check()
    monkeypatch.setattr(mutant.target, mutant.name, mutant.mutated(getattr(mutant.target, mutant.name)))

    with pytest.raises((AssertionError, ValueError)):
        mutant.check()


@pytest.mark.parametrize("swapped", [{"interpolation": "bilinear"}, {"resize_mode": "squash"}], ids=str)
def test_an_input_taken_for_another_is_seen(swapped: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = model_input(**swapped)
    monkeypatch.setattr("tests.images.test_shapes.model_input", lambda **_: theirs)
    monkeypatch.setattr("tests.images.test_shapes.geometry", lambda **_: geometry(**swapped))

    with pytest.raises(AssertionError):
        shapes.test_reference_is_open_clips_own(1000, 225, {})
