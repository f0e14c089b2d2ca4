"""A pickle machine whose time and memory the size of the pickle bounds.

Python's own, in C, does not bound them: an index of its memo of ten bytes takes gigabytes, and the
hash of nested tuples that share their parts, wanted for a key, takes for ever and stops for no
signal. The rendition in Python keeps its memo in a dict; what hashes and what allocates by a
number of the pickle is replaced here.
"""

import pickle
import struct
from typing import Any, ClassVar

_MAX_AXES = 64
"""What NumPy's arrays have at most."""


class NestedKeyError(pickle.UnpicklingError):
    """A container as a key, of which the hash may take for ever."""


class BoundedUnpickler(pickle._Unpickler):
    """Keys and elements of sets are flat; nothing is allocated before its bytes are there."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def load(self) -> Any:
        try:
            return super().load()
        except EOFError:
            raise EOFError("Ran out of input") from None
        except (struct.error, IndexError) as error:
            raise pickle.UnpicklingError(f"it is truncated or corrupt: {error}") from error

    def load_setitem(self) -> None:
        check_flat(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            check_flat(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            check_flat(key)
        super().load_dict()

    def load_additems(self) -> None:
        for item in self.stack:
            check_flat(item)
        super().load_additems()

    def load_frozenset(self) -> None:
        for item in self.stack:
            check_flat(item)
        super().load_frozenset()

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) < size:
            raise pickle.UnpicklingError("it is truncated")
        self.append(bytearray(data))

    for _code, _load in (
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
        (pickle.BYTEARRAY8, load_bytearray8),
    ):
        dispatch[_code[0]] = _load


def check_flat(key: Any) -> None:
    """Raises NestedKeyError for a key that is no string, number, None or short tuple of these."""
    parts = key if type(key) is tuple and len(key) <= _MAX_AXES else (key,)
    if not all(part is None or type(part) in (str, bytes, int, float, bool) for part in parts):
        raise NestedKeyError(f"a key of type {type(key).__name__} that is nested")


def sizes(values: Any) -> tuple[int, ...]:
    """A shape or strides: a tuple of at most 64 integers; TypeError for anything else."""
    if not isinstance(values, list | tuple) or len(values) > _MAX_AXES:
        raise TypeError("a shape that is no short list")
    if not all(type(value) is int for value in values):
        raise TypeError("a shape that is not of integers")
    return tuple(values)
