"""Who may import what: the structure of the code, held by a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("schemas/**/*.py"), *ROOT.glob("worker/**/*.py")])

# A package from outside, and the modules that may know it; the commands wire everything, so they may know all.
ONLY_IN = {
    "confluent_kafka": {
        "worker.clients",
        "worker.delivery",
        "worker.dispatch",
        "worker.source",
        "worker.topics",
        "worker.transaction",
    },
    "open_clip": {"worker.architectures", "worker.quick_gelu", "worker.weights"},
    "PIL": {"worker.decode", "worker.fit", "worker.images"},
    "pillow_heif": {"worker.decode"},
    "prometheus_client": {"worker.health", "worker.metrics"},
    "simplejpeg": {"worker.decode"},
    "torch": {
        "worker.architectures",
        "worker.checkpoints",
        "worker.cuda",
        "worker.encoder",
        "worker.fit",
        "worker.hugging_face",
        "worker.nvjpeg",
        "worker.quick_gelu",
        "worker.selftest",
        "worker.tower",
        "worker.weights",
    },
}
# The stages of the flow, and the only other ones that each may know.
STAGES = {
    "worker.batcher": set(),
    "worker.decode": set(),
    "worker.delivery": {"worker.dispatch", "worker.outbound"},
    "worker.dispatch": {"worker.outbound"},
    "worker.encoder": set(),
    "worker.fit": set(),
    "worker.images": {"worker.decode", "worker.fit"},
    "worker.loop": set(),
    "worker.nvjpeg": {"worker.decode", "worker.fit", "worker.images"},
    "worker.outbound": set(),
    "worker.pipeline": {"worker.batcher"},
    "worker.prepare": set(),
    "worker.source": set(),
    "worker.transaction": {"worker.dispatch", "worker.outbound"},
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module}
    return found


def _packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path).startswith("schemas")], ids=_name)
def test_schemas_knows_nothing_but_msgpack_and_numpy(path: Path) -> None:
    assert not _packages(path) & {"worker", "click", "pydantic", *ONLY_IN}


@pytest.mark.parametrize("name", ["worker.records", "worker.errors", "worker.activity"])
def test_the_values_know_only_schemas(name: str) -> None:
    imports = _imports(ROOT / f"{name.replace('.', '/')}.py")

    assert not {module for module in imports if module.startswith("worker")}


@pytest.mark.parametrize("path", [path for path in MODULES if "cli" not in path.parts], ids=_name)
def test_a_package_from_outside_is_known_only_where_it_is_used(path: Path) -> None:
    known = {package for package in _packages(path) if package in ONLY_IN and _name(path) not in ONLY_IN[package]}

    assert known == set()


@pytest.mark.parametrize(("stage", "may_know"), STAGES.items())
def test_a_stage_does_not_know_the_others(stage: str, may_know: set[str]) -> None:
    imports = _imports(ROOT / f"{stage.replace('.', '/')}.py")

    assert imports & STAGES.keys() <= may_know


def test_nothing_below_the_commands_knows_a_command() -> None:
    below = [path for path in MODULES if "cli" not in path.parts and path.name != "__main__.py"]

    assert [path.name for path in below if any(name.startswith("worker.cli.") for name in _imports(path))] == []
