"""The demonstration as a user starts it: a process with its own broker and its own worker."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
UNTRAINED = "UNTRAINED WEIGHTS: similarities are without meaning"
SMALL_MODEL = {"WORKER_WEIGHTS": "random", "WORKER_MODEL": "ViT-S-32-alt"}
CAMERA_BYTES = 3_000_000
TIMEOUT_S = 200


def _demo(
    folder: Path, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    return subprocess.run(
        [sys.executable, "-m", "worker", "demo", *map(str, arguments)],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | SMALL_MODEL | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def _noise(seed: int, side: int, form: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, form, quality=98)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of eight photographs as cameras make them, a PNG of 20 MB, small ones, and a broken one."""
    folder = tmp_path / "w["
    folder.mkdir()
    for number in range(8):
        photograph = _noise(number, 1_450, "JPEG")
        assert len(photograph) > CAMERA_BYTES
        (folder / f"photograph-{number}.jpg").write_bytes(photograph)
    (folder / "huge.png").write_bytes(_noise(8, 2_600, "PNG"))
    for number in range(4):
        (folder / f"small-{number}.png").write_bytes(_noise(number, 20, "PNG"))
    (folder / "b].jpg").write_bytes(b"no image")
    return folder


def test_pictures_of_every_size_and_name_are_embedded_whatever_the_level_of_the_log(pictures: Path) -> None:
    done = _demo(pictures.parent, "w[", env={"WORKER_LOG_LEVEL": "error"})

    assert done.returncode == 0, done.stdout
    assert "13 images through Kafka" in done.stdout
    assert "not embedded b].jpg: bad-image: " in done.stdout
    assert re.search(rf"^│ *{UNTRAINED} *│$", done.stdout, re.MULTILINE)
    assert f'role="alert">{UNTRAINED}</p>' in (pictures.parent / "clip-demo.html").read_text("utf-8")


def test_a_page_that_can_not_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    done = _demo(tmp_path, "--output", "nowhere/page.html")

    assert (done.returncode, done.stdout) == (
        1,
        "Error: nowhere/page.html can't be written: there is no folder nowhere\n",
    )


def test_a_folder_that_is_not_there_is_named_by_the_home_that_it_is_in(tmp_path: Path) -> None:
    done = _demo(tmp_path, "~/pictures", env={"HOME": str(tmp_path)})

    assert (done.returncode, done.stdout) == (1, f"Error: there is no folder {tmp_path}/pictures\n")


@pytest.mark.parametrize("name", ["~", "two  spaces", 'a "quote"', "a $dollar", "an ' apostrophe"])
def test_make_passes_the_folder_on_as_it_is(name: str, tmp_path: Path) -> None:
    program = tmp_path / "clip-worker"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    program.chmod(0o755)

    said = subprocess.check_output(
        ["make", "--silent", "--old-file=setup", "demo", f"FOLDER={name}", f"BIN={tmp_path}"], cwd=ROOT, text=True
    )

    assert said == f"<demo><{name}>"
