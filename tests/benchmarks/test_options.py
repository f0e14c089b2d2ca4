"""Options that do not go together are refused, with what to do."""

import pytest

from maft_jax.benchmarks.options import BenchmarkOptions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"what": ()}, "--what=: expected at least one of step, input, evaluation, precompute"),
        ({"what": ("step", "speed")}, "unknown ['speed']"),
        ({"steps": 0}, "--steps=0 --warmup=3: expected at least 1 step"),
        ({"warmup": -1}, "--steps=20 --warmup=-1"),
        ({"peak_flops": 0.0}, "--peak_tflops=0.0: expected a positive number"),
        ({"what": ("input",), "compare_torch": True}, "PyTorch of step and evaluation alone"),
        ({"compare_torch": True, "configured_data": True}, "compare with --data=random"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError) as error:
        BenchmarkOptions(**fields)
    assert message in str(error.value)
