"""Decoding, resizing and the whole preparation of one picture, on one thread.

open_clip's transform ends in normalised float32; `fast` ends in uint8, which is normalised on the device.
"""

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import Compose
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from tests.benchmarks.pictures import Picture, encoded, picture
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.timing import interleave, ratios
from worker.decode import Decoder
from worker.fit import Fit, Geometry
from worker.images import Fast, Reference
from worker.processor import usable_cores
from worker.records import ModelInput, Pixels

PART = "parts"
SIZES = ((320, 240), (500, 375), (1920, 1440), (4000, 3000))
SMOKE_SIZES = ((500, 375),)
OTHERS = ("PNG", "WEBP")
FORMATS = ("JPEG", *OTHERS, "array")
MAX_PIXELS = 50_000_000
RESIZED = 224

Prepare = Callable[[Picture], object]

# What `fast` has to reach against open_clip's transform.
_LEAST = {
    ("JPEG", 500): 3.5,
    ("JPEG", 1920): 3.5,
    ("JPEG", 4000): 3.5,
    ("array", 320): 5.0,
    ("array", 500): 5.0,
    ("array", 1920): 5.0,
    ("array", 4000): 5.0,
}
_LEAST_OF_BARE = 0.95
_LEAST_OF_TWO_THREADS = 1.9


def ways() -> Mapping[str, Prepare]:
    """Return what is compared, open_clip's transform first."""
    config = PreprocessCfg()
    transform = image_transform_v2(config, is_train=False)
    geometry: Geometry = Compose(transform.transforms[:-2])
    return {
        "open_clip's transform": lambda it: transform(_opened(it)),
        "Pillow alone": _pillow_alone,
        "reference": Reference(model_input(), geometry, MAX_PIXELS),
        "fast": Fast(model_input(), geometry, MAX_PIXELS),
        "bare": _bare,
    }


def model_input() -> ModelInput:
    """Return that of ViT-B/32."""
    config = PreprocessCfg()
    return ModelInput(RESIZED, tuple(config.mean), tuple(config.std), config.interpolation, config.resize_mode)


def preparation(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield the images a second of one core, by format and size."""
    for width, height in _sizes(size):
        for kind in FORMATS:
            say(f"preparation of {width}×{height} {kind}")
            yield from _compare(kind, width, height, size)


def steps(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield what decoding and resizing take alone, and what each trick of `fast` brings."""
    for width, height in _sizes(size):
        say(f"decoding and resizing of {width}×{height}")
        file, pixels = picture("JPEG", width, height), picture("array", width, height)
        assert isinstance(file, bytes)
        assert isinstance(pixels, np.ndarray)
        seconds = interleave(_steps(file, pixels), size.rounds, round_s=_round_s(size))
        for name, took_s in seconds.items():
            yield Measurement(PART, f"{name}, {width}×{height}", "ms", [1e3 * one for one in took_s])
        whole, decoded = "resize: the whole picture", "decode: simplejpeg"
        brought = ratios(seconds["resize: the whole picture, into planes"], seconds[whole])
        yield _trick("a result in channels-last memory", width, height, brought)
        yield _trick("only the kept part is resized", width, height, ratios(seconds[whole], seconds["resize: fast"]))
        brought = ratios(
            seconds["decode and resize: into aligned memory"], seconds["decode and resize: beside the alignment"]
        )
        yield _trick("memory that libjpeg-turbo doesn't write past the cache", width, height, brought)
        brought = ratios(seconds[decoded], seconds["decode: simplejpeg, into kept memory"])
        yield _trick("decoding into memory that is kept", width, height, brought)


def threads(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield how much more two threads prepare than one."""
    say("one prepare thread and two")
    file, fast = picture("JPEG", 500, 375), ways()["fast"]
    images = max(4, round(200 * size.scale))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(size.rounds):
        for count, measured in rates.items():
            measured.append(_rate(fast, file, count, images))
    for count, measured in rates.items():
        yield Measurement(PART, f"fast in {count} threads, 500×375 JPEG", "images/s", measured)
    least = _LEAST_OF_TWO_THREADS if size.scale >= 1 and usable_cores() > 1 else None
    yield Bound(PART, "two prepare threads to one", ratios(rates[2], rates[1]), least)


def _compare(kind: str, width: int, height: int, size: Size) -> Iterator[Result]:
    what = f"{width}×{height} {kind}"
    image = picture(kind, width, height)
    prepared = {name: _bound(way, image) for name, way in ways().items()}
    seconds = interleave(prepared, size.rounds, round_s=_round_s(size))
    ours = seconds["fast"]
    yield Bound(
        PART,
        f"fast to open_clip's transform, {what}",
        ratios(seconds["open_clip's transform"], ours),
        _LEAST.get((kind, width)) if size.scale >= 1 else None,
    )
    least = _LEAST_OF_BARE if kind == "JPEG" and size.scale >= 1 else None
    yield Bound(PART, f"fast to decode and resize called bare, {what}", ratios(seconds["bare"], ours), least)
    for name, took_s in seconds.items():
        yield Measurement(PART, f"{name}, {what}", "images/s a core", [1 / one for one in took_s])


def _bound(way: Prepare, image: Picture) -> Callable[[], object]:
    return lambda: way(image)


def _steps(file: bytes, pixels: Pixels) -> Mapping[str, Callable[[], object]]:
    height, width = pixels.shape[:2]
    decoder, fit = Decoder(MAX_PIXELS), Fit(model_input(), lambda image: image, MAX_PIXELS)
    long, image = int(RESIZED * width / height), Image.fromarray(pixels)
    aligned, beside = (_memory(pixels.nbytes, offset) for offset in (0, 16))
    return {
        "decode and resize: into aligned memory": lambda: fit.fit_pixels(_decode_into(aligned, file)),
        "decode and resize: beside the alignment": lambda: fit.fit_pixels(_decode_into(beside, file)),
        "decode: simplejpeg, into kept memory": lambda: _decode_into(beside, file),
        "decode: Pillow": lambda: _opened(file).load(),
        "decode: simplejpeg": lambda: simplejpeg.decode_jpeg(file, "RGB"),
        "decode: fast": lambda: decoder.decode(file),
        **{f"decode: fast, {kind}": partial(decoder.decode, encoded(image, kind)) for kind in OTHERS},
        "resize: Pillow": lambda: image.resize((long, RESIZED), Image.Resampling.BICUBIC),
        "resize: the whole picture, into planes": lambda: interpolate(
            torch.from_numpy(pixels).permute(2, 0, 1)[None], (RESIZED, long), mode="bicubic", antialias=True
        ),
        "resize: the whole picture": lambda: interpolate(
            _channels_last(pixels), (RESIZED, long), mode="bicubic", antialias=True
        ),
        "resize: fast": lambda: fit.fit_pixels(pixels),
    }


def _memory(size_bytes: int, offset: int) -> Pixels:
    """Return memory at that offset from the 32 bytes that libjpeg-turbo aligns to."""
    memory = np.empty(size_bytes + 64, np.uint8)
    begin = offset - memory.ctypes.data % 32 + 32
    return memory[begin : begin + size_bytes]


def _decode_into(memory: Pixels, file: bytes) -> Pixels:
    decoded: Pixels = simplejpeg.decode_jpeg(file, "RGB", buffer=memory)
    return decoded


def _trick(name: str, width: int, height: int, brings: Sequence[float]) -> Bound:
    return Bound(PART, f"{name}: before to after, {width}×{height}", brings)


def _rate(way: Prepare, image: Picture, count: int, images: int) -> float:
    """Return the images a second of so many threads, each with so many images, once all are there."""
    begin = threading.Barrier(count + 1)

    def work() -> None:
        way(image)
        begin.wait()
        for _ in range(images):
            way(image)

    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(work) for _ in range(count)]
        begin.wait()
        begun_s = time.perf_counter()
        for one in done:
            one.result()
        return count * images / (time.perf_counter() - begun_s)


def _opened(image: Picture) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))


def _pillow_alone(image: Picture) -> Pixels:
    """Decode, resize and crop with Pillow, as uint8."""
    opened = _opened(image)
    width, height = opened.size
    long = int(RESIZED * max(width, height) / min(width, height))
    to = (RESIZED, long) if width < height else (long, RESIZED)
    left, top = (round((side - RESIZED) / 2) for side in to)
    resized = opened.resize(to, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + RESIZED, top + RESIZED)).convert("RGB"))


def _bare(image: Picture) -> torch.Tensor:
    """Decode and resize with the packages' own calls, and nothing around them."""
    if isinstance(image, np.ndarray):
        pixels = image
    elif image.startswith(b"\xff\xd8\xff"):
        pixels = simplejpeg.decode_jpeg(image, "RGB")
    else:
        pixels = np.array(_opened(image).convert("RGB"))
    resized: torch.Tensor = resize(_channels_last(pixels), [RESIZED], InterpolationMode.BICUBIC, antialias=True)
    return resized


def _channels_last(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)


def _sizes(size: Size) -> Sequence[tuple[int, int]]:
    return SIZES if size.scale >= 1 else SMOKE_SIZES


def _round_s(size: Size) -> float:
    return 0.05 * size.scale
