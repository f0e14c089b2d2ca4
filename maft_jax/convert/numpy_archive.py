"""NumPy's .npz, one array at a time, without pickles."""

import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from input_pipeline.limits import MAX_UNPACKED_BYTES, check_limit
from input_pipeline.zip_directory import check_all_listed
from maft_jax.convert.stored_tensor import StoredTensor

_SUFFIX = ".npy"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_UNNAMED = np.dtype("V2")  # what NumPy, which has no name for it, makes of bfloat16
_UNREADABLE = Exception
"""Of many kinds: zipfile, its decompressors and NumPy's reader of headers have no common one."""


def is_numpy_archive(path: pathlib.Path) -> bool:
    """Whether the file is a zip of nothing but .npy entries."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _UNREADABLE:
        return False
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def open_numpy_archive(
    source: pathlib.Path | io.BytesIO, where: str | None = None
) -> dict[str, StoredTensor]:
    """Arrays by name, which read the file when asked; their CRC-32 is compared then.

    `where` stands for the source in messages, the path unless given.

    Raises:
        ValueError: corrupt, encrypted, a compressed array above the limit, or one of Python
            objects, which would have to be unpickled.
    """
    path = where or source
    try:
        with zipfile.ZipFile(source) as archive:
            check_all_listed(archive)
            entries = archive.infolist()
    except _UNREADABLE as error:
        raise ValueError(f"{path}: corrupt .npz archive: {error}") from error
    tensors = {}
    for entry in entries:
        name = entry.filename.removesuffix(_SUFFIX)
        with _opened(source, entry, path) as file:
            shape, dtype = _read_header(file)
            num_bytes = math.prod(shape) * dtype.itemsize
            # NumPy takes the memory that the header asks for before it looks for the data.
            if not dtype.hasobject and file.tell() + num_bytes != entry.file_size:
                raise ValueError(
                    f"expected {num_bytes} bytes for shape {shape!s:.80} of {dtype}, got "
                    f"{entry.file_size - file.tell()}"
                )
        if dtype.hasobject:
            raise ValueError(
                f"{path}: the array {name!r} holds Python objects, which are never unpickled"
            )
        if entry.compress_type != zipfile.ZIP_STORED:
            check_limit(
                MAX_UNPACKED_BYTES, num_bytes, f"{path}: bytes of the compressed array {name!r}"
            )
        tensors[name] = StoredTensor(
            shape, dtype, functools.partial(_read_array, source, entry, path)
        )
    return tensors


@contextmanager
def _opened(source, entry: zipfile.ZipInfo, path) -> Iterator[zipfile.ZipExtFile]:
    try:
        with zipfile.ZipFile(source) as archive, archive.open(entry) as file:
            yield file
    except _UNREADABLE as error:
        name = entry.filename.removesuffix(_SUFFIX)
        raise ValueError(f"{path}: corrupt array {name!r}: {error}") from error


def _read_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    shape, _, dtype = read[version](file)
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of negative sizes, {shape!s:.80}")
    return shape, _BFLOAT16 if dtype == _UNNAMED else dtype


def _read_array(source, entry: zipfile.ZipInfo, path) -> np.ndarray:
    with _opened(source, entry, path) as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at the end, where zipfile compares the checksum
        return values.view(_BFLOAT16) if values.dtype == _UNNAMED else values


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
