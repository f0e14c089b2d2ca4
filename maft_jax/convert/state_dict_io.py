"""Flat state dicts on disk: safetensors, npz, PyTorch files without executing what is in them."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from input_pipeline.bounded_unpickler import BoundedUnpickler, NestedKeyError
from maft_jax.convert.numpy_archive import (
    is_numpy_archive,
    open_numpy_archive,
    write_numpy_archive,
)
from maft_jax.convert.safetensors_file import is_safetensors, open_safetensors, write_safetensors
from maft_jax.convert.stored_tensor import StoredTensor, in_memory
from maft_jax.convert.torch_archive import (
    is_zip_archive,
    open_torch_archive,
)
from maft_jax.runtime.atomic_files import atomic_write, clear_leftovers

SUFFIXES = (".safetensors", ".pt", ".npz")


def open_state_dict(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a file by name, and its metadata; values are read when asked for.

    The kind is recognised by the content: safetensors, NumPy's .npz, PyTorch zip archives (a state
    dict or OpenAI's TorchScript CLIP: neither needs torch, and no code in them runs), and PyTorch's
    older format through `torch.load(weights_only=True)`, which reads all of it at once. The file
    must not change while its tensors are in use.

    Raises:
        ValueError: no such file, not one of these formats, or corrupt.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"{path}: {found}; expected a file of CLIP weights (.safetensors, .pt, .npz)"
        )
    if is_safetensors(path):
        return open_safetensors(path)
    if is_zip_archive(path):
        if is_numpy_archive(path):
            return open_numpy_archive(path), {}
        return open_torch_archive(path), {}
    return in_memory(_load_legacy_torch(path)), {}


_LEGACY_PICKLES, _MOST_LEGACY_ENTRIES = 5, 200_000
"""Magic number, version, machine, content, names of storages; entries of all dictionaries."""
_PICKLE = b"\x80"
"""What a PyTorch file begins with that is no zip archive."""


def write_state_dict(
    tensors: Mapping[str, StoredTensor],
    path: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes .safetensors, .npz, or .pt with torch; written aside, then renamed.

    Safetensors and npz hold one tensor in memory at a time, PyTorch all of them.

    Args:
        metadata: kept in .safetensors, which alone has a place for it.
        progress: is told how many more bytes were written.

    Raises:
        ValueError: the name has another ending, or the folder does not exist.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ValueError(f"{path}: expected a name that ends in {endings}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    clear_leftovers(path.parent, path.name)
    with atomic_write(path) as aside:
        aside = pathlib.Path(aside)
        if path.suffix == ".safetensors":
            write_safetensors(tensors, aside, {"format": "pt", **(metadata or {})}, progress)
        elif path.suffix == ".npz":
            write_numpy_archive(tensors, aside, progress)
        else:
            _write_torch(tensors, aside, path, progress)


def _write_torch(tensors, aside: pathlib.Path, path: pathlib.Path, progress) -> None:
    torch = _import_torch(f"{path}: writing .pt")
    converted = {}
    for name, tensor in tensors.items():
        values = np.array(tensor.read(), order="C")
        if values.dtype.name == "bfloat16":  # torch takes no array of it
            converted[name] = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            converted[name] = torch.from_numpy(values)
        progress(tensor.nbytes)
    with open(aside, "wb") as file:  # its failures have reasons, those of PyTorch's own do not
        torch.save(converted, file)


def _load_legacy_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(20)
    if not start.startswith(_PICKLE):
        raise ValueError(
            f"{path}: neither safetensors nor a PyTorch file nor .npz: it begins with {start!r}; "
            "expected a file of weights"
        )
    torch = _import_torch(f"{path}: reading this format (not safetensors, not a zip archive)")
    _refuse_nested_keys(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text advises to load without weights_only, which runs what the file contains
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path}: neither safetensors nor a PyTorch file of nothing but tensors"
            f"{f': it refers to {found[1]}' if found else ''}. Nothing in it was executed"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a state dict, found {type(loaded).__name__}")
    found = {}
    for count, (name, value) in enumerate(_named_tensors(torch, loaded)):
        if count == _MOST_LEGACY_ENTRIES:
            raise ValueError(f"{path}: corrupt: dictionaries that share their parts too often")
        if value is not None:
            found[name] = _as_numpy(torch, value)
    return found


class _Anything:
    """Stands in for whatever a pickle refers to."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


class _Inert(BoundedUnpickler):
    def find_class(self, module: str, name: str) -> type[_Anything]:
        return _Anything

    def persistent_load(self, pid: object) -> None:
        return None


def _refuse_nested_keys(path: pathlib.Path) -> None:
    """What torch.load would hash for ever; anything else is left to it."""
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                _Inert(file).load()
        except NestedKeyError as error:
            raise ValueError(f"{path}: corrupt PyTorch file: {error}") from error
        except Exception:  # torch.load names what is wrong
            return


def _named_tensors(torch, content: dict, prefix: str = ""):
    """(name, tensor) in dictionaries of dictionaries, their keys joined with dots; None for others.

    A dictionary that several share comes once for each.
    """
    for key, value in content.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", None
            yield from _named_tensors(torch, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, torch.Tensor) else None


def _as_numpy(torch, tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _import_torch(task: str):
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{task} needs PyTorch: pip install torch, or use .safetensors") from error
    return torch
