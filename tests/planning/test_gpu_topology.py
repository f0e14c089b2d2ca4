"""Cards by name, and what is said where the compiler for them is missing."""

import importlib.util

import pytest

from maft_jax.planning import gpu_topology
from maft_jax.planning.gpu_topology import (
    GPU_TARGETS,
    device_bytes,
    gpu_devices,
    target_config,
    why_no_gpu_compiler,
)


@pytest.mark.parametrize(("name", "capability"), [("h100", "major: 9"), ("a100", "major: 8")])
def test_cards_have_80_gb_and_their_capability(name, capability):
    target = target_config(name)
    assert capability in target
    assert 84e9 < device_bytes(target) < 86e9
    assert list(GPU_TARGETS) == ["h100", "a100"]


def test_other_cards_are_refused():
    with pytest.raises(ValueError, match=r"'h200': expected one of \['h100', 'a100'\]"):
        target_config("h200")


@pytest.mark.parametrize("missing", ["jax_cuda12_plugin", "nvidia.cuda_nvcc", "nvidia.cudnn"])
def test_what_is_not_installed_is_named_with_the_cure(missing, monkeypatch):
    def find_spec(name):
        if name == missing:
            if name.startswith("nvidia."):
                raise ModuleNotFoundError("nvidia")
            return None
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    told = rf"{missing}.*needs no GPU: pip install 'maft_jax\[cuda-compile\]'"
    with pytest.raises(ValueError, match=told):
        gpu_devices(target_config("h100"), 1)
    monkeypatch.setattr(gpu_topology, "_MODULES", ())
    assert why_no_gpu_compiler() is None
