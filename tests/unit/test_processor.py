from pathlib import Path

import pytest

from worker.processor import bf16_unit


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("fpu sse avx2 avx512f avx512_bf16", "AVX512-BF16"),
        ("fpu avx512_bf16 amx_tile amx_bf16", "AMX"),
        ("fpu sse avx2 avx512f avx512_vnni", None),
    ],
)
def test_what_multiplies_in_bf16_is_read_from_the_flags(flags: str, unit: str | None, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")

    assert bf16_unit(cpuinfo) == unit


def test_a_system_that_tells_nothing_of_its_processor_has_no_bf16(tmp_path: Path) -> None:
    assert bf16_unit(tmp_path / "missing") is None
