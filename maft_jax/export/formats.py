"""The formats that programs are exported to, what each can keep free, and what it needs."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from maft_jax.export.programs import Program

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
_LIMIT = 2**31 - 2**26


@dataclasses.dataclass(frozen=True)
class Format:
    """One of FORMATS; its packages are loaded when it is used."""

    name: str
    suffix: str
    """Of a program's file; empty where it is a folder."""
    module: str
    """Has the next two."""
    writer: str
    opener: str
    runtime: str
    """The package that runs it, without which it is not verified."""
    needs: str
    """What pip installs for it."""
    free_sizes: bool = True
    """Whether sizes can be left to who runs it."""
    holds_all: bool = False
    """Whether weights of more than 2 GiB fit."""

    def write(self, program: Program, folder: pathlib.Path) -> pathlib.Path:
        """The file or folder that was written.

        Raises:
            ValueError: weights that the format cannot hold, or a package that is not there.
        """
        if program.num_bytes > _LIMIT and not self.holds_all:
            raise ValueError(
                f"{program.name}: {program.num_bytes / 2**30:.1f} GiB of weights, of which "
                f"--format={self.name} holds 2; use --dtype=float16, or --format=savedmodel or onnx"
            )
        path = folder / f"{program.name}{self.suffix}"
        getattr(self._loaded(), self.writer)(program, path)
        return path

    def open(self, path: pathlib.Path) -> Run | None:
        """What runs a written program in its own runtime; None where that is not installed."""
        if importlib.util.find_spec(self.runtime) is None:
            return None
        return getattr(self._loaded(), self.opener)(path)

    def _loaded(self) -> ModuleType:
        try:
            return importlib.import_module(f"maft_jax.export.{self.module}")
        except ImportError as error:
            raise ValueError(
                f"--format={self.name}: {error}; install what it needs: pip install {self.needs}"
            ) from error


FORMATS = {
    each.name: each
    for each in (
        Format("stablehlo", ".stablehlo", "stablehlo", "write", "opened", "jax", "jax"),
        Format(
            "onnx",
            ".onnx",
            "onnx_program",
            "write",
            "opened",
            "onnxruntime",
            "'maft_jax[onnx]'",
            holds_all=True,
        ),
        Format(
            "savedmodel",
            "",
            "tensorflow_programs",
            "write_saved_model",
            "open_saved_model",
            "tensorflow",
            "tensorflow",
            holds_all=True,
        ),
        Format(
            "tflite",
            ".tflite",
            "tensorflow_programs",
            "write_tflite",
            "open_tflite",
            "tensorflow",
            "tensorflow",
            free_sizes=False,
        ),
    )
}
