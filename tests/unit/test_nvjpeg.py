"""Which files nvJPEG gets, and what becomes of those that it refuses: with a decoder in its place that needs no GPU."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, Event
from types import MappingProxyType

import numpy as np
import pytest
import simplejpeg
import torch

from schemas.dead_letter import Reason, Rejection
from tests.unit.pictures_for_tests import (
    FORMS,
    MAX_PIXELS,
    PHOTOGRAPHS,
    encode,
    file_of,
    geometry,
    model_input,
    photograph,
    turned,
)
from worker.errors import DeviceError
from worker.images import Fast
from worker.nvjpeg import NvJpeg, nvjpeg_decoder
from worker.records import Pixels

ON_GPU = {"jpeg-444", "jpeg-420", "jpeg-grey", "jpeg-progressive"}
PATIENCE_S = 10


@dataclass
class StandIn:
    """Decodes as nvJPEG would, on the CPU, and notes the lists that it is given; refuses lists with some files."""

    refused: Sequence[bytes] = ()
    lists: list[list[bytes]] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def __call__(self, files: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        self.before()
        contents = [file.numpy().tobytes() for file in files]
        self.lists.append(contents)
        if any(file in self.refused for file in contents):
            raise RuntimeError("Failed to decode jpegs")
        return [torch.from_numpy(simplejpeg.decode_jpeg(file, "RGB")).permute(2, 0, 1) for file in contents]


def _nvjpeg(
    decode: StandIn, changed: Mapping[str, object] = MappingProxyType({}), max_pixels: int = MAX_PIXELS
) -> NvJpeg:
    return NvJpeg(model_input(**changed), geometry(**changed), max_pixels, decode)


def _fast(**changed: object) -> Fast:
    return Fast(model_input(**changed), geometry(**changed), MAX_PIXELS)


def _assert_close(found: Pixels, expected: Pixels) -> None:
    levels = np.abs(found.astype(int) - expected)

    assert levels.max() <= 2
    assert levels.mean() <= 0.02


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("form", FORMS)
def test_plain_jpegs_are_decoded_there_and_all_others_by_fast(form: str, name: str) -> None:
    file, decode = file_of(form, name), StandIn()

    pixels = _nvjpeg(decode)(file)

    assert decode.lists == ([[file]] if form in ON_GPU else [])
    _assert_close(pixels, _fast()(file))


@pytest.mark.parametrize(
    ("width", "height"), [(224, 224), (300, 200), (200, 300), (1000, 300), (300, 1000), (225, 226), (100, 50), (1, 1)]
)
@pytest.mark.parametrize(
    "changed",
    [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}],
    ids=["bicubic", "squash", "bilinear"],
)
def test_pictures_of_any_shape_are_resized_as_fast_does(width: int, height: int, changed: dict[str, object]) -> None:
    file = encode(photograph("coffee").resize((width, height)), "JPEG", quality=90)

    _assert_close(_nvjpeg(StandIn(), changed)(file), _fast(**changed)(file))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_data_says(orientation: int) -> None:
    file = encode(photograph("coffee").resize((301, 200)), "JPEG", exif=turned(orientation))
    decode = StandIn()

    pixels = _nvjpeg(decode)(file)

    assert decode.lists == [[file]]
    _assert_close(pixels, _fast()(file))


def test_an_array_is_not_for_it() -> None:
    decode, array = StandIn(), np.asarray(photograph("coffee"))

    pixels = _nvjpeg(decode)(array)

    assert decode.lists == []
    np.testing.assert_array_equal(pixels, _fast()(array))


def test_a_model_that_pads_has_its_pictures_from_fast() -> None:
    changed: Mapping[str, object] = {"resize_mode": "longest"}
    decode, file = StandIn(), file_of("jpeg-420", "coffee")

    pixels = _nvjpeg(decode, changed)(file)

    assert decode.lists == []
    np.testing.assert_array_equal(pixels, _fast(**changed)(file))


def test_a_file_that_it_refuses_is_decoded_by_fast() -> None:
    file = file_of("jpeg-420", "coffee")
    decode = StandIn(refused=[file])

    pixels = _nvjpeg(decode)(file)

    assert decode.lists == [[file]]
    np.testing.assert_array_equal(pixels, _fast()(file))


@pytest.mark.parametrize(
    ("cut", "what"), [(slice(0, -2), "its end"), (slice(0, 2_000), "most of it")], ids=["end", "most"]
)
def test_a_jpeg_that_is_cut_off_is_for_fast_to_judge(cut: slice, what: str) -> None:
    file, decode = file_of("jpeg-420", "coffee")[cut], StandIn()

    with pytest.raises(Rejection) as raised:
        _nvjpeg(decode)(file)

    assert raised.value.reason is Reason.BAD_IMAGE, what
    assert decode.lists == []


def test_limits_are_checked_before_it_sees_a_file() -> None:
    decode = StandIn()

    with pytest.raises(Rejection) as raised:
        _nvjpeg(decode, max_pixels=1_000)(file_of("jpeg-420", "coffee"))

    assert raised.value.reason is Reason.TOO_MANY_PIXELS
    assert decode.lists == []


def test_threads_that_wait_are_served_together_and_a_bad_file_harms_no_other() -> None:
    names = PHOTOGRAPHS
    files = [file_of("jpeg-420", name) for name in names]
    first, is_held, may_go_on = file_of("jpeg-444", names[0]), Event(), Event()

    def hold_the_first() -> None:
        if not is_held.is_set():
            is_held.set()
            assert may_go_on.wait(PATIENCE_S)

    decode = StandIn(refused=[files[1]], before=hold_the_first)
    nvjpeg = _nvjpeg(decode)
    with ThreadPoolExecutor(len(files) + 1) as pool:
        alone = pool.submit(nvjpeg, first)
        assert is_held.wait(PATIENCE_S)
        arrive = Barrier(len(files))
        waiting = [pool.submit(lambda file: (arrive.wait(PATIENCE_S), nvjpeg(file))[1], file) for file in files]
        _wait_until(lambda: nvjpeg._waiting.qsize() == len(files))
        may_go_on.set()
        found = [future.result(PATIENCE_S) for future in (alone, *waiting)]

    assert decode.lists[0] == [first]
    assert sorted(decode.lists[1]) == sorted(files)
    assert sorted(decode.lists[2:]) == sorted([file] for file in files)
    for pixels, file in zip(found, [first, *files], strict=True):
        _assert_close(pixels, _fast()(file))


def test_what_nobody_expects_ends_only_the_thread_that_meets_it() -> None:
    file, broken = file_of("jpeg-420", "coffee"), [True]

    def fail_once() -> None:
        if broken and broken.pop():
            raise KeyError("unexpected")

    nvjpeg = _nvjpeg(StandIn(before=fail_once))
    with pytest.raises(KeyError):
        nvjpeg(file)

    _assert_close(nvjpeg(file), _fast()(file))


def test_it_needs_a_device_that_can() -> None:
    with pytest.raises(DeviceError, match="DECODER=nvjpeg needs CUDA, but the device is cpu"):
        nvjpeg_decoder("cpu")


def test_a_torchvision_or_a_device_without_it_is_named() -> None:
    with pytest.raises(DeviceError, match=r"DECODER=nvjpeg: torchvision \S+ can't: "):
        nvjpeg_decoder("cuda:99")


def _wait_until(is_so: Callable[[], bool]) -> None:
    polls = Event()
    for _ in range(PATIENCE_S * 100):
        if is_so():
            return
        polls.wait(0.01)
    raise AssertionError("not in time")
