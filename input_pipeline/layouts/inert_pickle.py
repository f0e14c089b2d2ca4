"""Reads a pickle for its dicts, lists, strings and numbers, and runs nothing that is in it.

A pickle is a program: whoever wrote it chooses which functions run when it is loaded. Here no
function of anybody runs. The few names that pickled NumPy arrays need all lead to a stand-in that
keeps the elements of an array of objects and forgets everything else (rebuilding real arrays would
not do: a dtype whose state was tampered with makes NumPy read arbitrary addresses). Any other name
is refused.
"""

import io
from typing import Any

from input_pipeline.bounded_unpickler import BoundedUnpickler


class StandIn:
    """Takes the place of an array, scalar or dtype; `items` are the elements of an object array."""

    def __init__(self, *arguments: object):
        self.items: list | None = None

    def __setstate__(self, state: object) -> None:
        elements = state[-1] if isinstance(state, tuple) and state else None
        self.items = elements if isinstance(elements, list) else None


_STAND_INS = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # bytes, in pickles of protocol 2 and older
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        ),
    }
)


def read_inert_pickle(data: bytes, where: str) -> Any:
    """The object in a pickle, with every NumPy object replaced by a `StandIn`.

    Raises ValueError that begins with `where` when the pickle is corrupt, or names anything beyond
    what arrays of NumPy need.
    """
    try:
        return _InertUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except _RefusedError as error:
        raise ValueError(
            f"{where}: expected a pickle of lists, strings and NumPy arrays, this one asks to run "
            f"{error}; it was not run. Download the file again from the data set's own site"
        ) from None
    # Bytes that are no pickle can make the machine fail in any of its instructions.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{where}: cannot be read as a pickle: {reason}; download the file again"
        ) from error


class _RefusedError(Exception):
    pass


class _InertUnpickler(BoundedUnpickler):
    def find_class(self, module: str, name: str) -> type[StandIn]:
        if (module, name) not in _STAND_INS:
            raise _RefusedError(f"{f'{module}.{name}':.200}")
        return StandIn

    def persistent_load(self, persistent_id: object) -> None:
        shown = persistent_id if isinstance(persistent_id, str) else type(persistent_id)
        raise _RefusedError(f"a persistent object, {shown!r:.80}")
