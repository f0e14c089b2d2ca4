"""Where the rendition in PyTorch runs: on the device that jax uses, or not at all."""


def matching_device(platform: str, device_kind: str, num_devices: int) -> str:
    """PyTorch's name of the device that jax measures, as jax describes it.

    Raises:
        ValueError: PyTorch is not installed or cannot use that device, or there are several.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "--compare=torch: PyTorch is not installed; pip install 'maft_jax[torch]'"
        ) from error
    if platform == "cpu":
        return "cpu"
    if platform != "gpu":
        raise ValueError(
            f"--compare=torch: jax runs on {device_kind}, which PyTorch does not; "
            "compare on an NVIDIA GPU or with JAX_PLATFORMS=cpu"
        )
    if num_devices > 1:
        raise ValueError(
            f"--compare=torch: jax uses {num_devices} GPUs, and the rendition one; choose one "
            "with CUDA_VISIBLE_DEVICES=0"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            f"--compare=torch: jax runs on {device_kind}, but PyTorch "
            f"{torch.__version__} finds no CUDA device; install a PyTorch with CUDA, or compare on "
            "the CPU with JAX_PLATFORMS=cpu"
        )
    return "cuda"


def use_exact_float32() -> None:
    """No TensorFloat-32, which rounds float32 products to ten bits; jax uses none here either."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def wait_for(device: str) -> None:
    """Returns when PyTorch has nothing more to do there."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def release_memory() -> None:
    """Gives back what PyTorch keeps of the device for later, which jax may need; peaks restart."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def describe_torch(device: str, compute_dtype: str) -> dict:
    """Version, device, precision and attention, for the record."""
    import torch

    on_gpu = device == "cuda"
    return {
        "version": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": None if on_gpu else torch.get_num_threads(),
        "precision": "autocast bfloat16" if compute_dtype == "bfloat16" else "float32, TF32 off",
        "attention": "scaled_dot_product_attention",
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }
