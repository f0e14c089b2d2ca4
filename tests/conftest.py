"""Eight fake CPU devices, exact matrix products, and a compilation cache for the whole suite."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

from tests.torch_reference.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before anything imports transformers, which imports torchvision

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
