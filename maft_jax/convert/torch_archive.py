"""Tensors out of PyTorch zip archives, without PyTorch and without executing anything.

`torch.save` (since 1.6) and `torch.jit.save` write the same container: an uncompressed zip with a
pickle, `data.pkl`, that describes the tensors, and their bytes in `data/0`, `data/1`, and so on.
A pickle is a program. The one here runs in an unpickler that knows ten or so harmless names and
refuses every other; the code that a TorchScript archive carries is never opened. The CRC-32 of what
is read is compared.
"""

import collections
import functools
import io
import math
import mmap
import os
import pathlib
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from input_pipeline.bounded_unpickler import BoundedUnpickler, sizes
from input_pipeline.limits import MAX_JSON_BYTES, MAX_UNPACKED_BYTES, check_limit
from maft_jax.convert.stored_tensor import StoredTensor

_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # first entry; end of an archive without entries
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, then lengths of the name and the extra field

_STORAGE_DTYPES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_NAMES_PER_BYTE = 16
"""Characters of tensors' names and containers beside them, for each byte of the pickle: without
shared containers it is less than one."""
_DTYPE_NAMES = {np.dtype(dtype).name for dtype in _STORAGE_DTYPES.values()}


def is_zip_archive(path: str | os.PathLike) -> bool:
    """Whether the file starts like a zip, as `torch.save` has written since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) in _ZIP_MAGICS


def open_torch_archive(path: str | os.PathLike) -> dict[str, StoredTensor]:
    """read_torch_archive without reading: tensors of which each is copied when it is asked for.

    Raises:
        ValueError: as read_torch_archive; of a compressed entry only when it is read.
    """
    archive = _Archive(pathlib.Path(path))
    return {name: _stored(archive, name, view) for name, view in _views(archive).items()}


def read_torch_archive(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a saved state dict or of a TorchScript module, by its flat name.

    Names are the nested keys, list positions and module attributes joined with "."; everything
    that is not a tensor is left out, and so are the constants of traced code. The arrays are
    read-only views of the mapped file with the shapes and strides that they had in PyTorch;
    the file must not change while they live.

    Raises:
        ValueError: not a zip archive, corrupt, big-endian, without tensors, or its pickle asks
            for anything but plain tensors and containers.
    """
    archive = _Archive(pathlib.Path(path))
    return {name: _materialise(archive, name, view) for name, view in _views(archive).items()}


def _views(archive: "_Archive") -> dict[str, "_TensorView"]:
    views = {}
    for name, view in _unpickle(archive):
        if name in views:
            raise ValueError(
                f"{archive.path}: two tensors are both named {name!r}; expected unique names"
            )
        views[name] = view
    if not views:
        raise ValueError(
            f"{archive.path}: holds no tensors; expected a state dict or a TorchScript module"
        )
    return views


def _stored(archive: "_Archive", name: str, view: "_TensorView") -> StoredTensor:
    if not archive.compresses(f"data/{view.storage.key}"):
        _view_of(archive, name, view)  # says now whether it fits the file

    read = functools.partial(_copy_values, archive, name, view)
    return StoredTensor(view.shape, view.storage.dtype, read)


def _copy_values(archive: "_Archive", name: str, view: "_TensorView") -> np.ndarray:
    values = np.array(_materialise(archive, name, view))
    archive.forget_pages()
    return values


class _Archive:
    """Entries of the zip, below the one folder that PyTorch puts them in."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        if not is_zip_archive(path):
            raise ValueError(
                f"{path}: not a PyTorch zip archive. If it is a .pt file from before PyTorch 1.6, "
                "load it with torch.load(path, weights_only=True) and torch.save it again"
            )
        with path.open("rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    self._entries = {entry.filename: entry for entry in archive.infolist()}
            except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
                raise self.corrupt(f"the zip directory cannot be read ({error})") from error
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped = memoryview(self._map)
        self._checked: set[str] = set()
        self._root = self._find_root()
        byte_order = bytes(self.checked("byteorder")) if "byteorder" in self else b"little"
        if byte_order.strip() != b"little":
            raise ValueError(
                f"{path}: its tensors are in byte order {byte_order!r}; expected little-endian: "
                "load and save it with PyTorch on a little-endian machine"
            )

    def __contains__(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._entries

    def checked(self, name: str) -> memoryview:
        """`read`, whose CRC-32 is compared at the first time; 0 is what PyTorch writes for none."""
        data, crc = self.read(name), self._entries[f"{self._root}/{name}"].CRC
        if name not in self._checked and crc and zlib.crc32(data) != crc:
            raise self.corrupt(f"the bytes of entry {name!r} do not match their CRC-32")
        self._checked.add(name)
        return data

    def read(self, name: str) -> memoryview:
        """Bytes of an entry: the mapped file itself unless the entry is compressed."""
        entry = self._entries[f"{self._root}/{name}"]
        header = self._mapped[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size or header[:4] != _ZIP_MAGICS[0]:
            raise self.corrupt(f"entry {name!r} is not where the zip directory says")
        _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        stored = self._mapped[start : start + entry.compress_size]
        if entry.compress_type == zipfile.ZIP_STORED:
            return stored
        if entry.compress_type != zipfile.ZIP_DEFLATED:
            raise self.corrupt(f"entry {name!r} uses zip compression {entry.compress_type}")
        check_limit(
            MAX_UNPACKED_BYTES, entry.file_size, f"{self.path}: bytes of compressed entry {name!r}"
        )
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            inflated = inflate.decompress(stored, max(entry.file_size, 1))  # 0 would mean no limit
        except zlib.error as error:
            raise self.corrupt(f"entry {name!r} cannot be decompressed ({error})") from error
        return memoryview(inflated)

    def compresses(self, name: str) -> bool:
        return name in self and (
            self._entries[f"{self._root}/{name}"].compress_type != zipfile.ZIP_STORED
        )

    def forget_pages(self) -> None:
        """Gives back the memory of what was read; the next look reads the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def corrupt(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path}: truncated or corrupt PyTorch archive: {what}. Copy or download it again"
        )

    def _find_root(self) -> str:
        roots = [name[: -len("/data.pkl")] for name in self._entries if name.endswith("/data.pkl")]
        roots = [root for root in roots if "/" not in root]
        if len(roots) != 1:
            raise ValueError(
                f"{self.path}: a zip file with {len(roots)} entries named FOLDER/data.pkl; a file "
                "from torch.save or torch.jit.save has one"
            )
        return roots[0]


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _TensorView(NamedTuple):
    """A tensor before its bytes are looked up; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Module:
    """Stands in for any TorchScript class: keeps its attributes, does nothing."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


# What a pickle may call. Instances without slots or __dict__: a pickle can set attributes of
# functions and of other objects that it is given, and these would outlive the reading of its file.
class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        if not isinstance(storage, _Storage) or metadata:
            raise TypeError("a tensor with a lazy negation or without a storage")
        return _TensorView(storage, *sizes([offset]), sizes(shape), sizes(strides))


class _Empty:
    """An OrderedDict; as torch.save writes it, its entries come afterwards."""

    __slots__ = ()

    def __call__(self):
        return collections.OrderedDict()


class _Sizes:
    __slots__ = ()

    def __call__(self, values=()):
        return sizes(values)


class _FirstArgument:
    __slots__ = ()

    def __call__(self, value, *unused):
        return value


_CALLABLES = {
    ("collections", "OrderedDict"): _Empty(),
    ("torch", "Size"): _Sizes(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _FirstArgument(),
    ("torch.jit._pickle", "build_intlist"): _FirstArgument(),
    ("torch.jit._pickle", "build_doublelist"): _FirstArgument(),
    ("torch.jit._pickle", "build_boollist"): _FirstArgument(),
    ("torch.jit._pickle", "build_tensorlist"): _FirstArgument(),
    ("torch.jit._pickle", "restore_type_tag"): _FirstArgument(),
}


class _Refused(ValueError):
    """The pickle is intact and asks for something that it may not have."""


class _Unpickler(BoundedUnpickler):
    def __init__(self, data: memoryview, source: pathlib.Path):
        super().__init__(io.BytesIO(data))
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLABLES:
            return _CALLABLES[module, name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _StorageType(np.dtype(_STORAGE_DTYPES[name]))
        if module == "torch" and name in _DTYPE_NAMES:
            return f"torch.{name}"
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Module", (_Module,), {})  # a new one, which a pickle cannot spoil for all
        raise _Refused(
            f"{self._source}: its pickle refers to {f'{module}.{name}':.200}, which is forbidden: "
            "expected only plain tensors in dictionaries, lists or TorchScript modules. Nothing "
            "was executed. If you trust the file, load it with PyTorch and save its state dict"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, size = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise TypeError(f"persistent id of kind {type(kind).__name__}")
        if not isinstance(key, str) or type(size) is not int:
            raise TypeError("a storage whose key is no string or whose size is no integer")
        return _Storage(storage_type.dtype, key, size)


def _unpickle(archive: _Archive) -> list[tuple[str, _TensorView]]:
    pickled = archive.checked("data.pkl")
    check_limit(MAX_JSON_BYTES, len(pickled), f"{archive.path}: bytes of data.pkl")
    try:
        content = _Unpickler(pickled, archive.path).load()
        return _named_views(content, 10_000 + _NAMES_PER_BYTE * len(pickled))
    except _Refused:
        raise
    except Exception as error:  # a corrupt pickle can raise anything
        raise archive.corrupt(f"data.pkl: {type(error).__name__}: {error}") from error


def _named_views(content: Any, most: int) -> list[tuple[str, _TensorView]]:
    """Tensors in nested containers; a container that several share is gone through for each.

    Raises:
        ValueError: these are more than `most`, for their number grows with two to the depth.
    """
    found: list[tuple[str, _TensorView]] = []

    def visit(value: Any, keys: tuple[str, ...]) -> None:
        nonlocal most
        if isinstance(value, _TensorView):
            found.append((".".join(keys), value))
            most -= sum(map(len, keys))
        elif isinstance(value, _Module):
            visit(value.attributes, keys)
        elif isinstance(value, dict | list | tuple):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            for key, child in children:
                most -= 1
                if most < 0:
                    raise ValueError("containers that share their parts too often")
                visit(child, (*keys, str(key)))

    visit(content, ())
    return found


def _materialise(archive: _Archive, name: str, view: _TensorView) -> np.ndarray:
    """The values, whose storage's checksum was compared."""
    values = _view_of(archive, name, view)
    archive.checked(f"data/{view.storage.key}")
    return values


def _fits(view: _TensorView) -> bool:
    """In Python's integers: NumPy's own check of strides wraps around."""
    if len(view.shape) != len(view.strides) or min((view.offset, *view.shape, *view.strides)) < 0:
        return False
    last = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    return 0 in view.shape or view.offset + last < view.storage.size


def _view_of(archive: _Archive, name: str, view: _TensorView) -> np.ndarray:
    storage, item_size = view.storage, view.storage.dtype.itemsize
    entry = f"data/{storage.key}"
    if entry not in archive:
        raise archive.corrupt(f"tensor {name!r}: its entry {entry!r} is missing")
    data = archive.read(entry)
    if not 0 <= storage.size * item_size <= len(data):
        raise archive.corrupt(
            f"tensor {name!r}: expected {storage.size * item_size} bytes in entry {entry!r}, "
            f"found {len(data)}"
        )
    num_elements = math.prod(view.shape)
    if num_elements > storage.size:  # repeated by strides of 0
        check_limit(
            MAX_UNPACKED_BYTES, num_elements * item_size, f"{archive.path}: bytes of {name!r}"
        )
    try:
        if not _fits(view):
            raise ValueError("it reaches outside")
        return np.ndarray(
            view.shape,
            storage.dtype,
            buffer=data[: storage.size * item_size],
            offset=view.offset * item_size,
            strides=tuple(stride * item_size for stride in view.strides),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise archive.corrupt(
            f"tensor {name!r}: shape {view.shape}, strides {view.strides} and offset "
            f"{view.offset} do not fit its storage of {storage.size} elements ({error})"
        ) from error
