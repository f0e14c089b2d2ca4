"""PNGs with fewer rows than their header says, which Pillow fills with black without a word."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.image_files import read_image, read_label_map
from maft_jax.proposals.external import _read_png

COLORS = {"grey": (0, 1), "RGB": (2, 3), "palette": (3, 1), "RGBA": (6, 4)}


def png(path, width, height, pixels, *, color_type=0, bits=8, interlaced=0, parts=1):
    """A file whose IDAT chunks hold `pixels`, whatever their number."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    packed = zlib.compress(pixels)
    size = -(-len(packed) // parts)
    chunks = [chunk(b"IDAT", packed[i : i + size]) for i in range(0, len(packed), size)]
    palette = chunk(b"PLTE", bytes(range(30))) if color_type == 3 else b""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
    path.write_bytes(start + b"".join(chunks) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("missing", [0, 1, 8, 24])
def test_missing_rows_are_refused_by_name(tmp_path, name, missing):
    color_type, channels = COLORS[name]
    row = b"\0" + b"\7" * 8 * channels
    pixels = (row * 10)[: len(row) * 10 - missing]
    path = png(tmp_path / "a.png", 8, 10, pixels, color_type=color_type, parts=3)
    if not missing:
        assert read_image(path).shape == (10, 8, 3)
        return
    for source in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=r"a\.png: .*rows are missing"):
            read_image(source, str(path))


def test_label_maps_and_external_masks_are_refused_too(tmp_path):
    path = png(tmp_path / "a.png", 8, 10, (b"\0" + b"\1" * 8) * 9)
    with Image.open(path) as image:
        assert np.asarray(image)[9].tolist() == [0] * 8  # without a word
    for read in (read_label_map, lambda path: _read_png(path, ("L",), "a mask")):
        with pytest.raises(ValueError, match=r"a\.png: .*need 90 bytes, it has 81"):
            read(path)


@pytest.mark.parametrize(("width", "bits", "total"), [(8, 8, 79), (1, 8, 16), (5, 1, 30)])
def test_interlaced_images_have_as_many_bytes_as_pillow_reads(tmp_path, width, bits, total):
    pixels = bytes(total)
    assert read_image(png(tmp_path / "a.png", width, 8, pixels, bits=bits, interlaced=1)).any() == 0
    with pytest.raises(ValueError, match=f"need {total} bytes, it has {total - 1}"):
        read_image(png(tmp_path / "b.png", width, 8, pixels[1:], bits=bits, interlaced=1))
