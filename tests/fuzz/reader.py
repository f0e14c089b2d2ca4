"""What the fuzzers know of a reader."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from tests.fuzz.mutations import Mutation, damage

Make = Callable[[pathlib.Path], pathlib.Path]
Read = Callable[[pathlib.Path], Any]


@dataclasses.dataclass(frozen=True)
class Reader:
    """`make` writes the valid file into a folder and returns it; `read` reads what became of it.

    Where `checked`, the format has checksums: what is read without an error is what was written,
    or None.
    """

    name: str
    make: Make
    read: Read
    mutation: Mutation = damage
    checked: bool = False
    cost: int = 1
    """It is damaged that many times less often."""
