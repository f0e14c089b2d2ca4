"""Whether a PNG holds all the rows that its header says; Pillow leaves missing ones black."""

import struct
import zlib
from typing import BinaryIO

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the header's colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES += ((0, 1, 1, 2),)
"""First column and row, and steps, of each pass of an interlaced image."""
_BYTES_AT_ONCE = 2**20


def check_rows(file: BinaryIO) -> None:
    """Reads a PNG whose chunks are whole from its beginning, in bounded memory.

    Raises:
        ValueError: its pixels end early.
    """
    file.seek(8)
    expected = found = 0
    inflater = zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        content = file.read(length)
        file.read(4)
        if kind == b"IHDR":
            expected = _num_bytes(*struct.unpack(">IIBBxxB", content))
        elif kind == b"IDAT":
            while found < expected:
                part = inflater.decompress(content, _BYTES_AT_ONCE)
                content = inflater.unconsumed_tail
                found += len(part)
                if not part and not content:
                    break
        elif kind == b"IEND":
            break
    if found < expected:
        raise ValueError(f"its pixels end after {found} of {expected} bytes, so rows are missing")


def _num_bytes(width: int, height: int, bits: int, color_type: int, interlaced: int) -> int:
    """Of the pixels of all rows, with the byte before each that says how it is filtered."""
    bits_of_pixel = bits * _CHANNELS[color_type]
    total = 0
    for left, top, x_step, y_step in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // x_step), -((top - height) // y_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits_of_pixel + 7) // 8)
    return total
