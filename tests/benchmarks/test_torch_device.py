"""PyTorch runs where jax does, or says why not."""

import sys

import pytest
import torch

from maft_jax.benchmarks.torch_device import matching_device, use_exact_float32

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_cpu_on_cpu_whatever_the_number_of_fake_devices():
    assert matching_device("cpu", "cpu", 8) == "cpu"


def test_gpu_on_gpu(cuda):
    assert matching_device("gpu", H100, 1) == "cuda"


def test_a_pytorch_without_cuda_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device; install a PyTorch with CUDA"):
        matching_device("gpu", H100, 1)


def test_several_gpus_are_an_error(cuda):
    with pytest.raises(ValueError, match=r"jax uses 2 GPUs.*CUDA_VISIBLE_DEVICES=0"):
        matching_device("gpu", H100, 2)


def test_a_tpu_is_an_error(cuda):
    with pytest.raises(ValueError, match="jax runs on TPU v5 lite, which PyTorch does not"):
        matching_device("tpu", "TPU v5 lite", 1)


def test_no_pytorch_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'maft_jax\[torch\]'"):
        matching_device("cpu", "cpu", 1)


def test_float32_is_not_rounded():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        use_exact_float32()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
