"""Peaks by the names that devices give themselves."""

import pytest

from maft_jax.benchmarks.device_peaks import peak_flops


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_published_peaks(device_kind, teraflops):
    assert peak_flops(device_kind, "bfloat16") == teraflops * 1e12


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA L40S", "NVIDIA H100", "TPU v4 lite"])
def test_no_peak_is_guessed(device_kind):
    assert peak_flops(device_kind, "bfloat16") is None


def test_other_precisions_have_no_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
