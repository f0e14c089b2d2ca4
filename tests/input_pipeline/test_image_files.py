import numpy as np
import pytest
from PIL import Image

from input_pipeline.image_files import read_image, read_label_map

RGB = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)


def _saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_pixel_format_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(_saved(tmp_path / "a.png", image)), expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert read_image(_saved(tmp_path / "a.jpg", image))[0, 0].tolist() == [255, 0, 0]


def test_palette_with_transparency_becomes_rgb(tmp_path):
    image = Image.fromarray(RGB).convert("P")
    path = _saved(tmp_path / "a.png", image, transparency=bytes([0, 128, 255]))
    assert read_image(path).shape == (6, 4, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = read_image(_saved(tmp_path / "a.png", Image.fromarray(values)))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


def test_truncated_jpeg_is_an_error_that_names_the_file(tmp_path):
    path = _saved(tmp_path / "broken.jpg", Image.fromarray(np.tile(RGB, (20, 20, 1))))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"broken\.jpg: cannot be read as an image"):
        read_image(path)


def test_text_file_is_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as an image"):
        read_image(tmp_path / "a.jpg")


def test_missing_file_is_named():
    with pytest.raises(ValueError, match=r"nowhere\.png: expected a label map, there is no such"):
        read_label_map("nowhere.png")


def test_decompression_bomb_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    path = _saved(tmp_path / "huge.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ValueError, match=r"huge\.png: cannot be read as an image"):
        read_image(path)


def test_palette_label_map_gives_indices_not_colours(tmp_path):
    indices = np.array([[0, 1, 2], [3, 7, 255]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    np.testing.assert_array_equal(read_label_map(_saved(tmp_path / "a.png", image)), indices)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_label_map_gives_its_values(tmp_path, dtype):
    values = np.array([[0, 1, np.iinfo(dtype).max]], dtype)
    labels = read_label_map(_saved(tmp_path / "a.png", Image.fromarray(values)))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, values)


def test_one_bit_label_map_gives_zero_and_one(tmp_path):
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_label_map(_saved(tmp_path / "a.png", image)).tolist() == [[0, 1]]


def test_four_bit_grey_label_map_gives_stored_values(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_four_bit_grey_png(0x1F))
    assert read_label_map(path).tolist() == [[1, 15]]


def _four_bit_grey_png(byte):
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, byte]))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_colour_label_map_is_refused(tmp_path):
    path = _saved(tmp_path / "a.png", Image.fromarray(RGB))
    with pytest.raises(ValueError, match=r"it is a colour image .* save one class index per pixel"):
        read_label_map(path)
