"""What the README says is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from schemas import DocumentLimits, Reason, parse_traversal, read_document
from worker.cli.main import group
from worker.errors import EXIT_STALLED, WorkerError
from worker.settings import PREFIX, Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def _settings_table() -> str:
    """Return the README's table of settings as the code has them."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if name == "kafka":
            continue
        default = "required" if field.is_required() else f"`{field.default}`"
        if field.default in (None, "") or field.default_factory is not None:
            default = ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def _names_of_rows(heading: str) -> set[str]:
    """Return what stands in backticks at the beginning of the rows below a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([\w.-]+)` \|", section, flags=re.MULTILINE))


def _errors(root: type[WorkerError]) -> set[type[WorkerError]]:
    return {root}.union(*(_errors(child) for child in root.__subclasses__()))


def test_the_settings_table_is_that_of_the_code() -> None:
    assert _settings_table() in README


def test_every_reason_for_a_dead_letter_is_explained() -> None:
    assert _names_of_rows("Operating") >= {reason.value for reason in Reason}


def test_every_exit_code_is_explained() -> None:
    codes = {str(error.exit_code) for error in _errors(WorkerError)} - {"1"} | {str(EXIT_STALLED)}

    assert _names_of_rows("Operating") >= codes


def test_every_metric_is_explained() -> None:
    source = (Path(__file__).parents[2] / "worker" / "metrics.py").read_text()

    assert _names_of_rows("Operating") >= set(re.findall(r'"(clip_worker_\w+)"', source))


def test_every_setting_is_a_flag_of_run() -> None:
    help_text = CliRunner().invoke(group, ["run", "--help"]).output

    assert [name for name in Settings.model_fields if f"--{name.replace('_', '-')}" not in help_text] == []


def test_the_producer_with_msgpack_alone_makes_a_document_record(tmp_path: Path) -> None:
    example = README.partition("<!-- a producer with msgpack alone -->\n```python\n")[2].partition("```")[0]
    lines = [line for line in example.splitlines() if "roducer" not in line]
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff an image")
    script = "\n".join([*lines, "import sys", "sys.stdout.buffer.write(value)"])

    value = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True).stdout

    document = read_document(value, parse_traversal("r"), DocumentLimits(max_image_bytes=100, max_images=1))
    assert document.id == "cat"
    assert [bytes(image) for image in document.images()] == [b"\xff\xd8\xff an image"]
