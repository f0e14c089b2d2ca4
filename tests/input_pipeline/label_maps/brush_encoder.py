"""Label Studio's brush run lengths written by what its format says, a bit at a time as text."""

from itertools import groupby

SIZES = (3, 4, 8, 16)


def encode_values(values, bits=8, literal=False):
    """Bytes of runs, or with `literal` of one block that lists all values."""
    text = f"{len(values):032b}{bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in SIZES)
    if literal:
        text += f"011{len(values) - 1:016b}" + "".join(f"{value:0{bits}b}" for value in values)
    else:
        for value, run in groupby(values):
            left = len(list(run))
            while left:
                length = min(left, 2 ** SIZES[-1])
                number = next(i for i, size in enumerate(SIZES) if length <= 2**size)
                text += f"1{number:02b}{length - 1:0{SIZES[number]}b}{value:0{bits}b}"
                left -= length
    text += "0" * (
        8 - len(text) % 8
    )  # a whole byte of zeros where none is needed, as the tool does
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def encode_mask(mask, color=(170, 21, 255, 255), **options):
    """Of an RGBA image that has this colour where the mask is set, and is clear elsewhere."""
    pixels = [channel for on in mask.ravel() for channel in (color if on else (0, 0, 0, 0))]
    return encode_values(pixels, **options)
