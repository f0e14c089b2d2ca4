"""Masks as Label Studio's brush writes them: run lengths packed into bits (@thi.ng/rle-pack).

A header has the number of values (32 bits), bits of a value - 1 (5) and four sizes of lengths - 1
(4 each). Then follow blocks: a bit that says whether one value is repeated, the number of a size
(2), length - 1 in so many bits, and the value, or as many values as the length says.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt32

from input_pipeline.limits import MAX_PIXELS, check_limit

_CHANNELS = 4
_BITS_OF_VALUE, _BITS_OF_LENGTH = 8, (3, 4, 8, 16)
"""Of what is written; what is read says its own."""
# A block of the longest run, 2**16, takes 20 bits at least.
_MOST_VALUES_PER_BYTE = 8 * 2**16 // 20


def decode_brush(run_lengths: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The painted pixels, those with alpha above 0, of `size` (height, width).

    Raises:
        ValueError: the bytes are none, or not those of an RGBA image of this size.
    """
    check_limit(MAX_PIXELS, size[0] * size[1], f"rle: {size[0]} x {size[1]} pixels of a mask")
    values = decode_values(run_lengths, size[0] * size[1] * _CHANNELS)
    return values.reshape(*size, _CHANNELS)[..., _CHANNELS - 1] > 0


def decode_values(run_lengths: Sequence[int], expected: int) -> UInt32[np.ndarray, " n"]:
    """The values of packed run lengths, of which there must be `expected`.

    Raises:
        ValueError: these are no bytes, or they hold another number of values; says at which bit.
    """
    try:
        data = bytes(list(run_lengths))  # of a number it would be so many zeros
    except (TypeError, ValueError):
        raise ValueError(
            f"rle: expected a list of bytes, 0 to 255, got {run_lengths!r:.60}"
        ) from None
    stream = _BitStream(data)
    number = stream.read(32)
    if number != expected or number > len(data) * _MOST_VALUES_PER_BYTE:
        raise ValueError(
            f"rle: expected {expected:,} values, red, green, blue and alpha of each pixel, but "
            f"{len(data):,} bytes say that they hold {number:,}"
        )
    bits_of_value = stream.read(5) + 1
    bits_of_length = [stream.read(4) + 1 for _ in range(4)]
    values = np.empty(number, np.uint32)
    filled = 0
    while filled < number:
        is_run = stream.read(1)
        length = stream.read(bits_of_length[stream.read(2)]) + 1
        if filled + length > number:
            raise ValueError(
                f"rle: at bit {stream.position}: {length:,} values do not fit after {filled:,} of "
                f"{number:,}"
            )
        block = slice(filled, filled + length)
        values[block] = (
            stream.read(bits_of_value) if is_run else stream.read_all(length, bits_of_value)
        )
        filled += length
    stream.check_end()
    return values


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """A stroke over the mask, white and opaque, in a transparent image of its size."""
    pixels = mask.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [pixels.size]])) * _CHANNELS
    sizes = "".join(f"{bits - 1:04b}" for bits in _BITS_OF_LENGTH)
    blocks = [f"{pixels.size * _CHANNELS:032b}{_BITS_OF_VALUE - 1:05b}{sizes}"]
    for is_on, left in zip(pixels[starts].tolist(), lengths.tolist(), strict=True):
        while left:
            length = min(left, 2 ** _BITS_OF_LENGTH[-1])
            number, bits = next(
                (i, bits) for i, bits in enumerate(_BITS_OF_LENGTH) if length <= 2**bits
            )
            blocks.append(f"1{number:02b}{length - 1:0{bits}b}" + ("1" if is_on else "0") * 8)
            left -= length
    text = "".join(blocks)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


class _BitStream:
    """Numbers of any number of bits, the highest bit first."""

    def __init__(self, data: bytes):
        self._data = data
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self.position = 0

    def read(self, num_bits: int) -> int:
        start, end = self._take(num_bits)
        first, last = start // 8, -(-end // 8)
        return int.from_bytes(self._data[first:last]) >> (8 * last - end) & ((1 << num_bits) - 1)

    def read_all(self, length: int, num_bits: int) -> UInt32[np.ndarray, " n"]:
        start, end = self._take(length * num_bits)
        weights = (1 << np.arange(num_bits, dtype=np.int64))[::-1]
        return (self._bits[start:end].reshape(length, num_bits) @ weights).astype(np.uint32)

    def check_end(self) -> None:
        """Only zeros may follow, which fill the last bytes."""
        if self._bits[self.position :].any():
            raise ValueError(
                f"rle: {len(self._bits) - self.position} bits follow the last value, at bit "
                f"{self.position}"
            )

    def _take(self, num_bits: int) -> tuple[int, int]:
        start, self.position = self.position, self.position + num_bits
        if self.position > len(self._bits):
            raise ValueError(
                f"rle: ends early: {num_bits} bits are to be read at bit {start} of "
                f"{len(self._bits)}"
            )
        return start, self.position
