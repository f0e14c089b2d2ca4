"""Copies of weights files in which some tensors have other values and every other byte is the same.

Nothing is decoded and encoded again: the values are written over the old ones, in the old dtype,
so optimizer states, counters, names and their order all survive, whatever they are.
"""

import io
import json
import math
import mmap
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from input_pipeline.write_errors import naming
from maft_jax.convert.safetensors_file import open_safetensors, renew_digests
from maft_jax.convert.torch_archive import is_zip_archive, read_torch_archive
from maft_jax.runtime.atomic_files import atomic_write, clear_leftovers

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_COPY_CHUNK = 1 << 24
_LOCAL_HEADER = struct.Struct("<4s2xH6xL8xHH")  # magic, flags, CRC, lengths of name and extra
_CENTRAL_HEADER = struct.Struct("<4s12xL8xHHH12x")  # magic, CRC, lengths of name, extra, comment
_CRC_FOLLOWS_DATA = 0x8
_DESCRIPTOR_MAGIC = b"PK\x07\x08"


class Place(NamedTuple):
    """Where a tensor lies in its file; `offset` and `strides` count bytes."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past its last byte."""
        if 0 in self.shape:
            return self.offset
        spans = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((n - 1) * stride for n, stride in spans) + self.dtype.itemsize


def replace_tensors(
    template: str | os.PathLike,
    destination: str | os.PathLike,
    values: Mapping[str, np.ndarray],
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes a copy of `template` with new values for some of its tensors.

    Args:
        template: .safetensors, or a zip archive of torch.save.
        values: by the names that the tensors have in the file, nested keys joined with ".". They
            are rounded to the dtype that the file has.
        progress: is told how many more bytes were copied.

    Raises:
        ValueError: a tensor is absent, has another shape, shares memory with one that is to stay,
            or cannot hold its new values. Nothing is written then.
    """
    template, destination = pathlib.Path(template), pathlib.Path(destination)
    places = tensor_places(template)
    _check(template, places, values)
    rounded = {name: _rounded(template, name, values[name], places[name].dtype) for name in values}
    clear_leftovers(destination.parent, destination.name)
    with atomic_write(destination) as aside:
        _copy(template, aside, progress)
        with open(aside, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            for name, value in rounded.items():
                place = places[name]
                np.ndarray(place.shape, place.dtype, content, place.offset, place.strides)[...] = (
                    value
                )
            if is_zip_archive(aside):
                _renew_checksums(aside, content, [places[name] for name in rounded])
            content.flush()
        if not is_zip_archive(aside):
            renew_digests(pathlib.Path(aside), rounded)


def tensor_places(path: pathlib.Path) -> dict[str, Place]:
    """Where every floating-point tensor of a file lies.

    Raises:
        ValueError: the file is of another kind, corrupt, or compressed.
    """
    if is_zip_archive(path):
        return _places_in_archive(path)
    with path.open("rb") as file:
        start = file.read(9)
        if len(start) == 9 and start[8:] == b"{":
            open_safetensors(path)  # refuses what is corrupt
        else:
            raise ValueError(
                f"{path}: expected .safetensors or a zip archive of torch.save to write into; if "
                "it is a PyTorch file from before 1.6, load it with torch.load(path, "
                "weights_only=True) and torch.save it again"
            )
        size = int.from_bytes(start[:8], "little")
        file.seek(8)
        try:
            header = json.loads(file.read(size))
            return _places_in_safetensors(header, 8 + size, path.stat().st_size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: corrupt or unreadable safetensors file: {error}") from error


def _places_in_safetensors(header: dict, start: int, file_size: int) -> dict[str, Place]:
    places = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _SAFETENSORS_DTYPES:
            continue
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize or start + end > file_size:
            raise ValueError(f"tensor {name!r} of shape {shape} has {end - begin} bytes")
        places[name] = Place(start + begin, dtype, shape, _row_major(shape, dtype))
    return places


def _row_major(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))


def _places_in_archive(path: pathlib.Path) -> dict[str, Place]:
    """The arrays that are read are views of the mapped file: their addresses tell the places."""
    places = {}
    for name, array in read_torch_archive(path).items():
        if not isinstance(array.base, mmap.mmap):
            raise ValueError(
                f"{path}: tensor {name!r} is compressed; load the file with torch.load(path, "
                "weights_only=True) and torch.save it again"
            )
        start = np.frombuffer(array.base, np.uint8).ctypes.data
        places[name] = Place(array.ctypes.data - start, array.dtype, array.shape, array.strides)
    return places


def _check(template: pathlib.Path, places: Mapping[str, Place], values: Mapping) -> None:
    absent = [name for name in values if name not in places]
    if absent:
        raise ValueError(
            f"{template}: {len(absent)} tensors to replace are absent: {', '.join(absent[:5])}"
        )
    misshapen = [
        f"{name} {places[name].shape}, ours {np.shape(value)}"
        for name, value in values.items()
        if places[name].shape != np.shape(value)
    ]
    if misshapen:
        raise ValueError(
            f"{template}: {len(misshapen)} tensors to replace have other shapes: "
            f"{'; '.join(misshapen[:3])}. Expected a file for a tower of the same size"
        )
    repeated = [
        name
        for name in values
        if places[name].end - places[name].offset
        != math.prod(places[name].shape) * places[name].dtype.itemsize
    ]
    if repeated:
        raise ValueError(
            f"{template}: {repeated[:5]} are views of larger tensors or repeat their elements; "
            "save copies of them (tensor.clone()) first"
        )
    spans = sorted((place.offset, place.end, name) for name, place in places.items())
    reach, owner = 0, None
    for offset, end, name in spans:
        if offset < min(reach, end) and (name in values or owner in values):
            raise ValueError(
                f"{template}: the tensors {owner!r} and {name!r} share memory, so one cannot be "
                "replaced without the other; save copies of them (tensor.clone()) first"
            )
        if end > reach:
            reach, owner = end, name


def _rounded(template, name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    value = np.asarray(value)
    with np.errstate(over="ignore"):
        rounded = value.astype(dtype)
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise ValueError(
            f"{template}: {name} is {dtype} there, which cannot hold the new values (largest "
            f"{np.abs(value).max()}); expected finite values within its range"
        )
    return rounded


def _copy(source: pathlib.Path, target: os.PathLike, progress: Callable[[int], object]) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while chunk := _read(reader, source):
            writer.write(chunk)
            progress(len(chunk))


def _read(reader: io.BufferedIOBase, source: pathlib.Path) -> bytes:
    with naming(source):
        return reader.read(_COPY_CHUNK)


def _renew_checksums(path: os.PathLike, content: mmap.mmap, changed: list[Place]) -> None:
    """A zip stores each entry's CRC before or behind its data, and once more in its directory."""
    offsets = np.sort([place.offset for place in changed])
    with zipfile.ZipFile(path) as archive:
        entries, central = archive.infolist(), archive.start_dir
    for entry in entries:
        magic, flags, _, name_size, extra_size = _LOCAL_HEADER.unpack_from(
            content, entry.header_offset
        )
        begin = entry.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        end = begin + entry.compress_size
        central_magic, _, *sizes = _CENTRAL_HEADER.unpack_from(content, central)
        if magic != b"PK\x03\x04" or central_magic != b"PK\x01\x02":
            raise ValueError(f"{path}: corrupt zip directory at entry {entry.filename!r}")
        if np.searchsorted(offsets, begin) < np.searchsorted(offsets, end):
            crc = struct.pack("<L", zlib.crc32(memoryview(content)[begin:end]))
            content[central + 16 : central + 20] = crc
            if flags & _CRC_FOLLOWS_DATA:
                end += 4 if content[end : end + 4] == _DESCRIPTOR_MAGIC else 0
                content[end : end + 4] = crc
            else:
                content[entry.header_offset + 14 : entry.header_offset + 18] = crc
        central += _CENTRAL_HEADER.size + sum(sizes)
