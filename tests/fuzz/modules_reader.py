"""The reader of a method's own modules."""

import pathlib
from typing import Any

import jax
import numpy as np

from maft_jax.convert.method_modules import LINEAR_ALIGNMENT, read_modules, write_modules
from tests.fuzz.mutations import inside_header
from tests.fuzz.reader import Reader

MODULES = {
    name: {"kernel": np.full(size, 0.5, np.float32), "bias": np.ones(size[1], np.float32)}
    for name, size in {"proj_in": (2, 4), "proj_out": (4, 1)}.items()
}


def written(folder: pathlib.Path) -> pathlib.Path:
    write_modules(folder / "modules.safetensors", LINEAR_ALIGNMENT, MODULES)
    return folder / "modules.safetensors"


def read(path: pathlib.Path) -> Any:
    return jax.tree.leaves(read_modules(path, LINEAR_ALIGNMENT, MODULES))


MODULES_READER = Reader("modules", written, read, inside_header)
