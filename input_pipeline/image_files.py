"""Images and label maps as arrays, whatever pixel format the file has."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from input_pipeline.limits import MAX_PIXELS, check_limit
from input_pipeline.png_rows import check_rows

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I")
_INDEX_MODES = ("1", "L", "P", *_SIXTEEN_BIT_MODES)
# Pillow stretches grey levels of 2 and 4 bits to 0..255; dividing gives the stored value back.
_STRETCH = {"L;2": 85, "L;4": 17}


def read_image(source: str | Path | bytes, where: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image, a file or its bytes, as 8-bit RGB, turned upright as its EXIF says.

    16 bits are scaled to 8 and an alpha channel is dropped. Raises ValueError that begins with
    `where`, the path unless given.
    """
    with opened_image(source, where, "an image") as image:
        ImageOps.exif_transpose(image, in_place=True)
        return rgb_pixels(image)


def rgb_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an image of any mode as 8-bit RGB; ValueError if they are floats."""
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, expected 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_label_map(
    source: str | Path | bytes, where: str | None = None
) -> Int32[np.ndarray, "h w"]:
    """Reads the integers of a label map: grey levels, or the indices of a palette image.

    `source` is a file or its bytes. Raises ValueError that begins with `where`, the path unless
    given; also when it is a colour image.
    """
    with opened_image(source, where, "a label map") as image:
        if image.mode not in _INDEX_MODES:
            raise ValueError(
                f"it is a colour image (mode {image.mode}); save one class index per pixel, as a "
                "grey or palette PNG"
            )
        stretch = _STRETCH.get(_raw_mode(image), 1)
        values = np.array(image, np.int32)
        return values if stretch == 1 else values // stretch


def _raw_mode(image: Image.Image) -> object:
    """Pixel layout in the file, which `image.mode` does not tell; known before decoding."""
    args = image.tile[0][3] if image.tile else None
    return args[0] if isinstance(args, tuple) else args


@contextmanager
def opened_image(source: str | Path | bytes, where: str | None, what: str) -> Iterator[Image.Image]:
    """An image of a file or its bytes, not yet decoded and no larger than the limit of pixels.

    Whatever goes wrong inside becomes a ValueError that begins with `where`, the path unless given.
    """
    in_memory = isinstance(source, bytes)
    where = where or (f"{len(source)} bytes in memory" if in_memory else source)
    try:
        with _within_limit(source) as image:
            if image.format == "PNG":
                # Decoding alone does not look at the checksums of the pixels.
                with _within_limit(source) as unread:
                    unread.verify()
                check_rows(source if in_memory else Path(source).read_bytes())
            yield image
    except FileNotFoundError:
        raise ValueError(f"{where}: expected {what}, there is no such file") from None
    except Exception as error:  # Of many kinds: Pillow's decoders have no common one.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        reason = str(reason) or type(error).__name__
        raise ValueError(f"{where}: cannot be read as {what}: {reason}") from error


def _within_limit(source: str | Path | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    width, height = image.size
    check_limit(MAX_PIXELS, width * height, f"pixels of {width} x {height}")
    return image
