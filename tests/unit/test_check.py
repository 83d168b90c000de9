import pytest

from worker.cli.check import Finding, advise_precision
from worker.errors import DeviceError


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (2.13, "fp32 by default; PRECISION=bf16 is 2.1 times as fast with this processor's AVX512-BF16"),
        (0.58, "fp32; bf16 is only 0.6 times as fast, though this processor has AVX512-BF16"),
    ],
)
def test_bf16_is_recommended_where_it_is_faster_on_a_processor_that_has_it(times: float, said: str) -> None:
    advice = list(advise_precision("auto", "cpu", "AVX512-BF16", lambda: times))

    assert advice == [Finding("precision", fine=True, said=said)]


@pytest.mark.parametrize(
    ("precision", "device", "unit"),
    [("auto", "cpu", None), ("fp32", "cpu", "AMX"), ("bf16", "cpu", "AMX"), ("auto", "cuda", "AMX")],
    ids=["a processor without it", "fp32 is set", "bf16 is set", "a GPU"],
)
def test_bf16_is_not_measured_elsewhere(precision: str, device: str, unit: str | None) -> None:
    assert list(advise_precision(precision, device, unit, _refuse)) == []


def test_bf16_that_the_processor_can_not_do_well_is_no_fault_of_what_runs() -> None:
    advice = list(advise_precision("auto", "cpu", "AMX", _fail))

    assert advice == [Finding("precision", fine=True, said="fp32; the self-test failed")]


def _fail() -> float:
    raise DeviceError("the self-test failed")


def _refuse() -> float:
    raise AssertionError("measured")
