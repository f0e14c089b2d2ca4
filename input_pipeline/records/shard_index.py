"""The index of a shard: where its records lie, and what must be known of all before any is read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where a record lies, and what it holds.

    `offset` and `length` are bytes of the whole record with its framing, `checksum` is the masked
    CRC-32C of its data, height and width are the upright image's, `classes` are the class ids
    present, ascending.
    """

    offset: int
    length: int
    checksum: int
    example_id: str
    height: int
    width: int
    num_proposals: int
    classes: tuple[int, ...]


_COLUMNS = tuple(field.name for field in fields(IndexEntry))


class ShardIndex:
    """The entries of a shard in the order of the file, kept as one list per field.

    A hundred thousand entries would take a second to make and to collect, before each training.
    """

    def __init__(self, columns: dict[str, list]):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["offset"])

    def __getitem__(self, row: int) -> IndexEntry:
        *others, classes = (self._columns[name][row] for name in _COLUMNS)
        return IndexEntry(*others, tuple(classes))

    def column(self, name: str) -> list:
        """The values of a field of IndexEntry, for all entries; not a copy."""
        return self._columns[name]


def encode_index(entries: Sequence[IndexEntry]) -> bytes:
    """A JSON document of one list per field."""
    columns = {name: [getattr(entry, name) for entry in entries] for name in _COLUMNS}
    return (json.dumps(columns, separators=(",", ":")) + "\n").encode()


def decode_index(content: bytes) -> ShardIndex:
    """What `encode_index` was given; `content` is trusted, for the done-file has its SHA-256."""
    return ShardIndex(json.loads(content))
