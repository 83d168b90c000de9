"""What a pip install without, and with one, extra brings, in environments of their own."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).with_name("uv"))
HEAVY = ("torch", "torchvision", "open_clip", "PIL", "simplejpeg")

ROUND_TRIP = """
import numpy as np
from schemas import DocumentLimits, Origin, pack_document, pack_embedding
from schemas import parse_traversal, read_document, read_embedding

value = pack_document("a", np.zeros((2, 3, 3), np.uint8), tags={"colour": "black"})
document = read_document(value, parse_traversal("r"), DocumentLimits(max_image_bytes=100, max_images=1))
record = read_embedding(pack_embedding(document, np.ones((1, 512), np.float32), Origin("m", "fast", False)))
print(record.id, record.embedding.shape, record.tags)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=ROOT)
    return next(folder.glob("*.whl"))


def _environment(folder: Path, requirement: str) -> Path:
    """Make an environment with the locked versions; return its folder of programs."""
    _run(UV, "venv", "--quiet", "--python", sys.executable, str(folder))
    python = folder / "bin" / "python"
    _run(UV, "pip", "install", "--quiet", "--python", str(python), "--constraint", "requirements.lock", requirement)
    return python.parent


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def _refused(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("bare") / "venv", f"clip-worker @ {wheel.as_uri()}")


@pytest.fixture(scope="module")
def with_kafka(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("kafka") / "venv", f"clip-worker[kafka] @ {wheel.as_uri()}")


def test_the_wheel_says_that_its_packages_have_types(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()

    assert [name for name in names if name.endswith("py.typed")] == ["schemas/py.typed", "worker/py.typed"]


def test_schemas_works_without_torch_open_clip_and_kafka(bare: Path, tmp_path: Path) -> None:
    absent = (
        f"import importlib.util; print([it for it in {(*HEAVY, 'confluent_kafka')} if importlib.util.find_spec(it)])"
    )

    assert _run(str(bare / "python"), "-c", absent, cwd=tmp_path) == "[]\n"
    assert _run(str(bare / "python"), "-c", ROUND_TRIP, cwd=tmp_path) == "a (512,) {'colour': 'black'}\n"


@pytest.mark.parametrize(
    ("name", "extra"), [("run", "worker"), ("demo", "worker"), ("check", "worker"), ("publish", "kafka")]
)
def test_a_command_whose_extra_is_missing_says_so_in_one_line(name: str, extra: str, bare: Path) -> None:
    said = _refused(str(bare / "clip-worker"), name, "--help")

    assert said.count("\n") == 1
    assert f"pip install 'clip-worker[{extra}]'" in said


def test_the_list_of_commands_needs_no_extra(bare: Path) -> None:
    assert "publish" in _run(str(bare / "clip-worker"), "--help")


@pytest.mark.parametrize("name", ["topics", "publish", "consume", "replay"])
def test_the_kafka_tools_work_without_the_worker(name: str, with_kafka: Path) -> None:
    assert "--bootstrap-servers" in _run(str(with_kafka / "clip-worker"), name, "--help")


def test_the_worker_needs_its_own_extra_beside_the_kafka_tools(with_kafka: Path) -> None:
    assert "pip install 'clip-worker[worker]'" in _refused(str(with_kafka / "clip-worker"), "run", "--help")
