"""Grey levels of more than 8 bits: what their white is, by what the file says.

Cameras and scanners keep 10, 12 or 14 bits in 16; read as 16 bits, such pictures are nearly black.
"""

import struct
from typing import BinaryIO

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

_WHITE = 2**16 - 1
_DARK = 2**14
"""Pictures of 16 bits that have no value from here on are taken for ones of fewer bits."""

_PNG_SIGNATURE_BYTES = 8
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281
_ADVICE = (
    "save it with 8 bits, or scale its values to 0 .. 65535 (a TIFF may give the highest value as "
    "MaxSampleValue, a grey PNG its bits in sBIT)"
)


def stated_white(image: Image.Image) -> int | None:
    """The highest value that a picture of 16 bits may have, if its file says so.

    Read before the pixels are: a TIFF's MaxSampleValue, its bits per sample if they are fewer, or
    those of sBIT in a PNG.
    """
    if image.format == "TIFF":
        highest = image.tag_v2.get(_MAX_SAMPLE_VALUE, (0,))[0]
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        return highest if 0 < highest <= _WHITE else 2**bits - 1 if 8 < bits < 16 else None
    if image.format == "PNG" and image.fp is not None:
        bits = _significant_bits(image.fp)
        return 2**bits - 1 if bits is not None and 8 < bits < 16 else None
    return None


def grey_of_16_bits(
    values: Integer[np.ndarray, "h w"], stated: int | None
) -> UInt8[np.ndarray, "h w"]:
    """8 bits of what has 16; values above what the file states are those of all 16 bits.

    (By PNG's specification sBIT tells the precision of values that fill all bits; programs that
    write 12 bits as they are use it, too.)
    Raises ValueError for values beyond 16 bits, and for pictures that would be nearly black.
    """
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > _WHITE:
        raise ValueError(
            f"it has values from {lowest} to {highest}, expected 0 to {_WHITE}; save it with 8 or "
            "16 bits"
        )
    if stated is not None and highest <= stated:
        white = stated
    elif 0 < highest < _DARK:
        raise ValueError(
            f"it has 16 bits, of which no pixel uses more than {highest.bit_length()} (its highest "
            f"value is {highest}), so that it would be nearly black; {_ADVICE}"
        )
    else:
        white = _WHITE
    grey = values.astype(np.uint32)
    grey *= 255
    grey += white // 2
    grey //= white
    return grey.astype(np.uint8)


def check_colors_of_16_bits(pixels: UInt8[np.ndarray, "h w c"]) -> None:
    """Refuses the upper 8 of 16 bits a colour, as Pillow reads them, that are nearly black."""
    highest = int(pixels.max())
    if 0 < highest < _DARK >> 8:
        raise ValueError(
            f"it has 16 bits a colour, of which no pixel uses more than {highest.bit_length() + 8}"
            f", so that it would be nearly black; {_ADVICE}"
        )


def _significant_bits(file: BinaryIO) -> int | None:
    """The first number of sBIT, which precedes the pixels of a PNG; None where there is none."""
    place = file.tell()
    try:
        file.seek(_PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT":
                return (file.read(1) or b"\0")[0]
            if name == b"IDAT":
                return None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)
