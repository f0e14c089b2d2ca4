"""Safetensors files, one tensor at a time: the format's own library checks, we read and write."""

import json
import pathlib
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import safetensors

from maft_jax.convert.stored_tensor import StoredTensor

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def is_safetensors(path: pathlib.Path) -> bool:
    """The format starts with the length of its JSON header, little-endian, then "{"."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def open_safetensors(path: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors by name, which read the file when asked, and the metadata.

    Raises:
        ValueError: corrupt, truncated, or with a dtype that we do not know.
    """
    try:
        with safetensors.safe_open(path, "numpy") as checked:  # the library knows what is corrupt
            metadata = checked.metadata() or {}
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, name, 8 + size, entry) for name, entry in header.items()}
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: corrupt or unreadable safetensors file: {error}") from error
    return tensors, metadata


def _stored(path: pathlib.Path, name: str, start: int, entry: Mapping) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} of the unknown dtype {entry['dtype']}")
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // dtype.itemsize

    def read():
        values = np.fromfile(path, dtype, count, offset=offset)
        if len(values) != count:
            raise ValueError(f"{path}: it became shorter while tensor {name!r} was being read")
        return values.reshape(shape)

    return StoredTensor(shape, dtype, read)


def write_safetensors(
    tensors: Mapping[str, StoredTensor],
    path: pathlib.Path,
    metadata: Mapping[str, str],
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes the header and then one tensor after the other, the widest dtypes first."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header, offset = {"__metadata__": dict(metadata)}, 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors are aligned in a mapped file
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in ordered:
            values = np.ascontiguousarray(tensor.read(), tensor.dtype)
            file.write(values.reshape(-1).view(np.uint8))
            progress(tensor.nbytes)
