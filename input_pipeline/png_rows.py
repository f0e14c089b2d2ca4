"""Whether a PNG has the rows that its header promises: decoders take missing ones for zeros."""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type, as the PNG specification numbers them (section 11.2.2)."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES = (*_ADAM7, (0, 1, 1, 2))
"""First column and row, and their steps, of the passes of an interlaced image (section 8.2)."""
_CHUNK = 2**20


def check_rows(data: bytes) -> None:
    """Raises ValueError where the pixels of an otherwise valid PNG end too early."""
    chunks = list(_chunks(data))
    header = next((body for kind, body in chunks if kind == b"IHDR"), b"")
    if len(header) != 13:
        return  # which decoders refuse
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(color, 0)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    found = _unpacked_size([body for kind, body in chunks if kind == b"IDAT"], expected)
    if found < expected:
        raise ValueError(
            f"its {width} x {height} pixels need {expected} bytes, it has {found}; rows are missing"
        )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), _SIGNATURE
    while at + 8 <= len(view):
        size, kind = struct.unpack(">I4s", view[at : at + 8])
        yield kind, view[at + 8 : at + 8 + size]
        at += 12 + size


def _unpacked_size(parts: list[memoryview], enough: int) -> int:
    """Bytes, counted as far as is enough and never kept."""
    inflate, size = zlib.decompressobj(), 0
    for part in parts:
        rest: bytes | memoryview = part
        while size < enough:
            unpacked = inflate.decompress(rest, _CHUNK)
            size, rest = size + len(unpacked), inflate.unconsumed_tail
            if not unpacked and not rest:
                break
    return size
