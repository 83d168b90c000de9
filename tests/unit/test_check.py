import pytest

from worker.cli.check import Finding, advise_precision

ADVICE = "fp32 by default; PRECISION=bf16 is about twice as fast with this processor's AVX512-BF16"


def test_bf16_is_recommended_on_a_processor_that_has_it() -> None:
    advice = list(advise_precision("auto", "cpu", "AVX512-BF16"))

    assert advice == [Finding("precision", fine=True, said=ADVICE)]


@pytest.mark.parametrize(
    ("precision", "device", "unit"),
    [("auto", "cpu", None), ("fp32", "cpu", "AMX"), ("bf16", "cpu", "AMX"), ("auto", "cuda", "AMX")],
    ids=["a processor without it", "fp32 is set", "bf16 is set", "a GPU"],
)
def test_bf16_is_not_recommended_elsewhere(precision: str, device: str, unit: str | None) -> None:
    assert list(advise_precision(precision, device, unit)) == []
