"""Puts the clients of `tests/tracking/clients` where the real ones would be."""

import importlib
import pathlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FOLDER = pathlib.Path(__file__).parent / "clients"


@contextmanager
def made_up_client(name: str) -> Iterator[types.ModuleType]:
    """Context in which `import wandb` or `import mlflow` gives ours, empty."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(FOLDER)
        for variable in ("WANDB_PROJECT", "WANDB_NAME", "MLFLOW_TRACKING_URI"):
            patched.delenv(variable, raising=False)
        for known in [key for key in sys.modules if key.split(".")[0] == name]:
            patched.delitem(sys.modules, known)
        module = importlib.import_module(name)
        yield module
        for ours in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[ours]
