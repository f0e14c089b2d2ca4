"""The compiler for NVIDIA GPUs, or why there is none."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from maft_jax.planning.gpu_topology import why_no_gpu_compiler

REQUIRED = "MAFT_JAX_REQUIRE_CUDA_COMPILER"
"""Set where the compiler must be there, as in .ci/run: its absence is a failure then."""


@pytest.fixture(autouse=True, scope="session")
def gpu_compiler():
    if missing := why_no_gpu_compiler():
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(missing)


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """What is compiled for a device that is not there cannot be read again.

    A process decides once whether it uses the cache, so that it must be asked again.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()
