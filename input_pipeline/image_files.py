"""Images and label maps as arrays, whatever pixel format the file has."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError, features

from input_pipeline.limits import MAX_PIXELS, MAX_SIDE, check_limit
from input_pipeline.png_rows import check_rows
from input_pipeline.sample_depth import (
    check_colors_of_16_bits,
    grey_of_16_bits,
    stated_white,
)

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
_MISSING = {
    name
    for name, readable in (
        ("WEBP", features.check("webp")),
        ("JPEG2000", features.check("jpg_2000")),
        ("AVIF", features.check("avif")),
        ("HEIF", pillow_heif is not None),
    )
    if not readable
}
_FORMATS = tuple(name for name in _SUFFIXES if name not in _MISSING)
"""What may be decoded. Pillow knows more, of which some start other programs (EPS)."""
IMAGE_SUFFIXES = tuple(suffix for name in _FORMATS for suffix in _SUFFIXES[name])
"""Of the files that count as images in folders, in small letters."""
UNREAD_HEIC = () if pillow_heif else _SUFFIXES["HEIF"]
"""Endings of photos that would be read with `HEIC_ADVICE`."""
HEIC_ADVICE = "install pillow-heif (pip install 'maft_jax[heic]') to read HEIC"

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I")
# Raw modes of which Pillow keeps the upper 8 bits.
_SIXTEEN_BIT_COLORS = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")
_INDEX_MODES = ("1", "L", "P", *_SIXTEEN_BIT_MODES)
# Pillow stretches grey levels of 2 and 4 bits to 0..255; dividing gives the stored value back.
_STRETCH = {"L;2": 85, "L;4": 17}


def read_image(source: str | Path | bytes, where: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image, a file or its bytes, as 8-bit RGB, turned upright as its EXIF says.

    16 bits are scaled to 8, an alpha channel is dropped, and of several frames the first is read.
    Raises ValueError that begins with `where`, the path unless given; also for 16 bits that would
    be nearly black, see sample_depth.
    """
    with opened_image(source, where, "an image") as image:
        white, raw_mode = stated_white(image), str(_raw_mode(image))
        ImageOps.exif_transpose(image, in_place=True)
        pixels = rgb_pixels(image, white)
        if raw_mode.startswith(_SIXTEEN_BIT_COLORS):
            check_colors_of_16_bits(pixels)
        return pixels


def rgb_pixels(image: Image.Image, white: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an image of any mode as 8-bit RGB.

    `white` is the highest value that 16 bits may have, if known. ValueError for floats, and as
    `grey_of_16_bits`.
    """
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = grey_of_16_bits(np.asarray(image), white)
        return np.repeat(grey[..., None], 3, axis=-1)
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
                "grey or palette PNG, or give a class list with colours"
            )
        stretch = _STRETCH.get(_raw_mode(image), 1)
        values = np.array(image, np.int32)
        return values if stretch == 1 else values // stretch


def read_color_map(
    source: str | Path | bytes, where: str | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads the colours of a label map; of palette images those of the palette.

    `source` is a file or its bytes. Raises ValueError that begins with `where`, the path unless
    given; also for pixels that are not opaque.
    """
    with opened_image(source, where, "a label map of colours") as image:
        if image.mode == "RGBA":
            opaque = np.asarray(image.getchannel("A")) == 255
            if not opaque.all():
                raise ValueError(
                    f"{opaque.size - opaque.sum():,} of {opaque.size:,} pixels are transparent, "
                    "which is no class; save the label map without an alpha channel"
                )
        elif image.mode not in ("RGB", "P", "L", "1"):
            raise ValueError(f"expected 8-bit colours, it has mode {image.mode}; save it as RGB")
        return np.asarray(image.convert("RGB"))


def is_color_image(source: str | Path | bytes, where: str | None = None) -> bool:
    """Whether the file has red, green and blue for each pixel; decodes nothing."""
    with opened_image(source, where, "a label map") as image:
        return image.mode in ("RGB", "RGBA")


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
        reason = _unknown_format(where) if isinstance(error, UnidentifiedImageError) else error
        reason = str(reason) or type(error).__name__
        raise ValueError(f"{where}: cannot be read as {what}: {reason}") from error


def _within_limit(source: str | Path | bytes) -> Image.Image:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    check_limit(MAX_PIXELS, width * height, f"pixels of {width} x {height}")
    check_limit(MAX_SIDE, max(width, height), f"longer side of {width} x {height}")
    return image


def _unknown_format(where: str | Path) -> str:
    advice = HEIC_ADVICE if str(where).lower().endswith(UNREAD_HEIC) else "save it as PNG"
    return f"unknown format, expected one of {', '.join(_FORMATS)}; {advice}"
