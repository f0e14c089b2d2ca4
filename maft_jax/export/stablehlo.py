"""StableHLO, as jax.export writes it: a file that any process with JAX alone calls."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax import export

from maft_jax.export.programs import Program

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(program: Program, path: pathlib.Path) -> None:
    """One file, for any platform, with the weights inside."""

    def closed(*inputs):
        return program.function(program.parameters, *inputs)

    exported = export.export(jax.jit(closed), platforms=PLATFORMS)(*program.specs())
    path.write_bytes(exported.serialize())


def opened(path: pathlib.Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """What runs it, inputs by name in their order."""
    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda inputs: jax.tree.map(np.asarray, call(*inputs.values()))
