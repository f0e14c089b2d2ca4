"""JSON values kept compressed, which as Python's objects take many times the memory.

What COCO annotates would take gigabytes in each of the processes that read it.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackedJson:
    """A value, and the digest of its text, which does not depend on who compresses it."""

    data: bytes
    digest: str

    @property
    def value(self) -> Any:
        return json.loads(zlib.decompress(self.data))


def pack(value: Any, told: Any = None) -> PackedJson:
    """The value in a small form; the digest is of `told` where that is given."""
    text = json.dumps(value).encode()
    of = text if told is None else json.dumps(told).encode()
    return PackedJson(zlib.compress(text, 1), hashlib.sha256(of).hexdigest())


def digest(*parts: object) -> str:
    """Of strings, numbers, and tuples, lists and dicts of them."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
