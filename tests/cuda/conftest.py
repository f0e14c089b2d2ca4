"""The compiler for NVIDIA GPUs, or why there is none."""

import os

import jax
import pytest

from maft_jax.planning.gpu_topology import why_no_gpu_compiler

REQUIRED = "MAFT_JAX_REQUIRE_CUDA_COMPILER"
"""Set where the compiler must be there, as in .ci/run: its absence is a failure then."""


@pytest.fixture(autouse=True, scope="session")
def gpu_compiler():
    if missing := why_no_gpu_compiler():
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(missing)


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """What is compiled for a device that is not there cannot be read again."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)
