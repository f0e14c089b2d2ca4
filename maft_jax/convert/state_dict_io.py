"""Flat state dicts on disk: safetensors, and PyTorch files without executing what they contain."""

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from maft_jax.convert.torch_archive import is_zip_archive, read_torch_archive
from maft_jax.whole_files import written_aside


def load_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a file, whose kind is recognised by its content.

    Safetensors, PyTorch zip archives (a state dict or OpenAI's TorchScript CLIP: neither needs
    torch, and no code in them runs), and PyTorch's older format through
    `torch.load(weights_only=True)`.

    Raises:
        ValueError: no such file, not one of these formats, or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {found}; expected a file of CLIP weights (.safetensors, .pt)")
    if is_zip_archive(path):
        return read_torch_archive(path)
    if _looks_like_safetensors(path):
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged or unreadable safetensors file: {error}") from error
    return _load_legacy_torch(path)


def save_state_dict(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes .safetensors, or .pt with torch; written aside, then renamed.

    Raises:
        ValueError: the name has another ending, or the folder does not exist.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{path}: expected a name that ends in .safetensors or .pt")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    with written_aside(path) as aside:
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(dict(tensors), aside, metadata={"format": "pt"})
        else:
            torch = _import_torch(f"{path}: writing .pt")
            torch.save({name: torch.tensor(value) for name, value in tensors.items()}, aside)
        os.chmod(aside, 0o666 & ~_umask())


def _umask() -> int:
    """safetensors makes files that only their owner may read; ours follow the umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _looks_like_safetensors(path: pathlib.Path) -> bool:
    """The format starts with the length of its JSON header, little-endian, then "{"."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def _load_legacy_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch(f"{path}: reading this format (not safetensors, not a zip archive)")
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
    return {
        name: value.float().numpy()
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def _import_torch(task: str):
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{task} needs PyTorch: pip install torch, or use .safetensors") from error
    return torch
