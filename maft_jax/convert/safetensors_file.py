"""Safetensors files, one tensor at a time: the format's own library checks, we read and write.

What we write has a CRC-32 of each tensor, and of the header without them, in the metadata: 4 GB a
second, and compared whenever a tensor is read, so that opening a huge file costs nothing.
"""

import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Collection, Mapping

import ml_dtypes
import numpy as np
import safetensors

from input_pipeline.limits import MAX_JSON_BYTES, check_limit
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.runtime.json_files import parse_json

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
DIGESTS = "maft_jax_crc32"
"""Key in the metadata: a JSON object of eight hexadecimal digits by tensor."""
_EDITED = (
    f"copy the file again; if another program changed it on purpose, let it leave out {DIGESTS} of "
    "the metadata"
)
_HEADER = ""
"""Stands among them for the header; no tensor is called so."""
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def is_safetensors(path: pathlib.Path) -> bool:
    """The format starts with the length of its JSON header, little-endian, then "{"."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def open_safetensors(path: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors by name, which read the file when asked, and the metadata.

    Raises:
        ValueError: corrupt, truncated, or with a dtype that we do not know; of a tensor whose bytes
            do not match its digest only when it is read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as checked:  # the library knows what is corrupt
            metadata = checked.metadata() or {}
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            check_limit(MAX_JSON_BYTES, size, "bytes of its header")
            header = json.loads(file.read(size))
        digests = _digests(header)
        header.pop("__metadata__", None)
        tensors = {
            name: _stored(path, name, 8 + size, entry, digests.get(name))
            for name, entry in header.items()
        }
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: corrupt or unreadable safetensors file: {error}") from error
    return tensors, metadata


def find_damage(path: pathlib.Path) -> str | None:
    """What is wrong with a file, every byte of which is read; None if nothing can be noticed.

    Values without digests, as other programs and earlier versions write them, pass for right.
    """
    try:
        for tensor in open_safetensors(path)[0].values():
            tensor.read()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _digests(header: Mapping) -> dict[str, str]:
    """Of every tensor, or none; ValueError where they do not belong to this header."""
    metadata = header.get("__metadata__") or {}
    if DIGESTS not in metadata:
        return {}
    digests = parse_json(metadata[DIGESTS], DIGESTS)
    if digests.get(_HEADER) != _digest_of_header(header):
        raise ValueError(f"its header does not match its digest in {DIGESTS}; {_EDITED}")
    if digests.keys() - {_HEADER} != header.keys() - {"__metadata__"}:
        raise ValueError(f"{DIGESTS} has digests of other tensors")
    return digests


def _digest_of_header(header: Mapping) -> str:
    metadata = {k: v for k, v in (header.get("__metadata__") or {}).items() if k != DIGESTS}
    bare = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return _digest(np.frombuffer(bare.encode(), np.uint8))


def _digest(values: np.ndarray) -> str:
    return f"{zlib.crc32(values.reshape(-1).view(np.uint8)):08x}"


def _stored(
    path: pathlib.Path, name: str, start: int, entry: Mapping, digest: str | None
) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} of the unknown dtype {entry['dtype']}")
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // dtype.itemsize
    read = functools.partial(_read, path, name, dtype, count, offset, shape, digest)
    return StoredTensor(shape, dtype, read)


def _read(
    path: pathlib.Path,
    name: str,
    dtype: np.dtype,
    count: int,
    offset: int,
    shape: tuple[int, ...],
    digest: str | None,
) -> np.ndarray:
    values = np.fromfile(path, dtype, count, offset=offset)
    if len(values) != count:
        raise ValueError(f"{path}: it became shorter while tensor {name!r} was being read")
    if digest is not None and _digest(values) != digest:
        raise ValueError(
            f"{path}: corrupt tensor {name!r}: its bytes do not match the CRC-32 that was "
            f"written with them; {_EDITED}"
        )
    return values.reshape(shape)


def write_safetensors(
    tensors: Mapping[str, StoredTensor],
    path: pathlib.Path,
    metadata: Mapping[str, str],
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes the header and then one tensor after the other, the widest dtypes first.

    Digests are put into the header at the end: a tensor is computed once.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header, offset = {"__metadata__": dict(metadata)}, 0
    for name, tensor in ordered:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    digests = {_HEADER: _digest_of_header(header), **dict.fromkeys(tensors, "0" * 8)}
    with open(path, "wb") as file:
        file.write(_encoded(header, digests))
        for name, tensor in ordered:
            values = np.ascontiguousarray(tensor.read(), tensor.dtype).reshape(-1)
            file.write(values.view(np.uint8))
            digests[name] = _digest(values)
            progress(tensor.nbytes)
        file.seek(0)
        file.write(_encoded(header, digests))


def _encoded(header: Mapping, digests: Mapping[str, str]) -> bytes:
    """Length and header; as long for all digests."""
    metadata = {**header["__metadata__"], DIGESTS: json.dumps(digests)}
    encoded = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors are aligned in a mapped file
    return len(encoded).to_bytes(8, "little") + encoded


def renew_digests(path: pathlib.Path, names: Collection[str]) -> None:
    """After the values of these tensors were written over in a file that has digests."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if not (digests := _digests(header)):
            return
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            digests[name] = _digest(np.frombuffer(file.read(end - begin), np.uint8))
        encoded = _encoded(header, digests)
        if len(encoded) != 8 + size:
            raise ValueError(f"{path}: its header was rewritten by another program")
        file.seek(0)
        file.write(encoded)
