"""12 bits in 16: scaled by what the file says, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.image_files import read_image, read_label_map, rgb_pixels

GREY = np.array([[0, 2048, 4095]], np.uint16)
SCALED = [0, 128, 255]
"""2048 / 4095 * 255 = 127.53."""


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(values, significant_bits=None, color_type=0):
    """16 bits a sample; Pillow writes neither sBIT nor 16 bits a colour."""
    values = np.asarray(values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    said = b"" if significant_bits is None else chunk(b"sBIT", bytes(significant_bits))
    parts = chunk(b"IHDR", header), said, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, **options):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", **options)
    return file.getvalue()


def tiff_of_12_bits(values):
    """Two values in three bytes."""
    text = "".join(f"{value:012b}" for value in values[0])
    text += "0" * (-len(text) % 8)
    data = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    entries = [(256, values.shape[1]), (257, 1), (258, 12), (259, 1), (262, 1), (273, 0), (277, 1)]
    entries += [(278, 1), (279, len(data))]
    start = 8 + 2 + 12 * len(entries) + 4
    table = [(tag, start if tag == 273 else number) for tag, number in entries]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in table)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4) + data


@pytest.mark.parametrize(
    "data",
    [
        tiff_of_12_bits(GREY),
        tiff(GREY, tiffinfo={281: 4095}),
        png(GREY, [12]),
        png(GREY * 16, [12]),
        png(GREY << 4 | GREY >> 8, [12]),
        png(GREY << 4 | GREY >> 8),
        b"P5 3 1 4095\n" + GREY.astype(">u2").tobytes(),
    ],
    ids=["tiff 12", "tiff max", "png low", "png high", "png spec", "png 16", "pgm"],
)
def test_twelve_bits_are_scaled_by_what_the_file_says(data):
    pixels = read_image(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[0, :, 0], SCALED, atol=1)
    assert pixels[0, 0, 0] == 0 and pixels[0, -1, 0] >= 254


@pytest.mark.parametrize("data", [png(GREY), tiff(GREY), png(GREY, [16]), png(GREY * 4)])
def test_grey_that_would_be_nearly_black_is_refused(data):
    with pytest.raises(
        ValueError, match=r"scan 7: .* 16 bits, of which no pixel uses more than 1[24]"
    ):
        read_image(data, "scan 7")


@pytest.mark.parametrize("bits", [None, [12] * 3])
def test_colours_that_would_be_nearly_black_are_refused(bits):
    colors = np.repeat(GREY[..., None], 3, axis=-1)
    with pytest.raises(ValueError, match=r"16 bits a colour, of which no pixel uses more than 12"):
        read_image(png(colors, bits, color_type=2))
    full = read_image(png(colors * 16, bits, color_type=2))
    np.testing.assert_array_equal(full[0, :, 1], GREY[0] >> 4)


def test_values_beyond_16_bits_are_refused_and_not_cut():
    values = np.array([[0, 70_000]], np.int32)
    with pytest.raises(ValueError, match=r"values from 0 to 70000, expected 0 to 65535; save it"):
        read_image(tiff(values))
    with pytest.raises(ValueError, match=r"values from 0 to 70000"):
        rgb_pixels(Image.fromarray(values))


def test_black_is_black():
    assert not read_image(png(np.zeros((2, 2), np.uint16))).any()


def test_all_16_bits_are_scaled_as_before():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = (values.astype(int) + 128) // 257
    np.testing.assert_array_equal(read_image(png(values))[..., 2], expected)


def test_label_maps_of_16_bits_are_left_as_they_are():
    np.testing.assert_array_equal(read_label_map(png(GREY, [12])), GREY)


@pytest.mark.parametrize("values", [[[False, True], [True, False]], [[True, True], [True, True]]])
def test_label_maps_of_one_bit_are_0_and_1(values):
    file = io.BytesIO()
    image = Image.fromarray(np.array(values))
    assert image.mode == "1"
    image.save(file, "PNG")
    np.testing.assert_array_equal(read_label_map(file.getvalue()), np.array(values, int))
