"""Names of files as other systems and tools write them, and lists of them in messages."""

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

_MAX_LISTED = 10


def composed(name: str) -> str:
    """The same for both spellings of accents: one character, or two as macOS writes them."""
    return unicodedata.normalize("NFC", name)


def portable_path(name: str) -> PurePosixPath:
    """A path as it is here: / for \\ of Windows, accents composed, which macOS takes apart."""
    return PurePosixPath(composed(name).replace("\\", "/"))


def shorten(items: Sequence[object]) -> str:
    """The first ten, with dots for the rest."""
    shown = ", ".join(map(str, items[:_MAX_LISTED]))
    return f"{shown}, ..." if len(items) > _MAX_LISTED else shown
