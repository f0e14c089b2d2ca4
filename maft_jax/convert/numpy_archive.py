"""NumPy's .npz, one array at a time, without pickles."""

import pathlib
import zipfile
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from maft_jax.convert.stored_tensor import StoredTensor

_SUFFIX = ".npy"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_UNNAMED = np.dtype("V2")  # what NumPy, which has no name for it, makes of bfloat16


def is_numpy_archive(path: pathlib.Path) -> bool:
    """Whether the file is a zip of nothing but .npy entries."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def open_numpy_archive(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Arrays by name, which read the file when asked.

    Raises:
        ValueError: corrupt, or an array of Python objects, which would have to be unpickled.
    """
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            name = entry.removesuffix(_SUFFIX)
            try:
                with archive.open(entry) as file:
                    shape, dtype = _read_header(file)
            except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
                raise ValueError(f"{path}: corrupt array {name!r}: {error}") from error
            if dtype.hasobject:
                raise ValueError(
                    f"{path}: the array {name!r} holds Python objects, which are never unpickled"
                )
            tensors[name] = StoredTensor(shape, dtype, _reader(path, entry))
    return tensors


def _read_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    shape, _, dtype = read[version](file)
    return shape, _BFLOAT16 if dtype == _UNNAMED else dtype


def _reader(path: pathlib.Path, entry: str) -> Callable[[], np.ndarray]:
    def read():
        try:
            with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
                return values.view(_BFLOAT16) if values.dtype == _UNNAMED else values
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            name = entry.removesuffix(_SUFFIX)
            raise ValueError(f"{path}: corrupt array {name!r}: {error}") from error

    return read


def write_numpy_archive(
    tensors: Mapping[str, StoredTensor],
    path: pathlib.Path,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes an uncompressed .npz as numpy.savez does, one array after the other."""
    with open(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as entry:
                np.lib.format.write_array(
                    entry, np.asarray(tensor.read(), tensor.dtype, order="C"), allow_pickle=False
                )
            progress(tensor.nbytes)
