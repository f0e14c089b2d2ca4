import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import image_files
from input_pipeline.image_files import IMAGE_SUFFIXES, read_image, read_label_map
from input_pipeline.png_rows import check_rows

RGB = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)


def _saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_pixel_format_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(_saved(tmp_path / "a.png", image)), expected)


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Tiff"])
def test_every_kind_of_file_is_read(tmp_path, suffix):
    grey = suffix in (".pgm", ".pbm")
    image = Image.new("L" if grey else "RGB", (8, 6), 255 if grey else (255, 0, 0))
    expected = np.asarray(image.convert("RGB"), np.int32)
    mode = {".pbm": "1", ".gif": "P"}.get(suffix, image.mode)
    pixels = read_image(_saved(tmp_path / f"a{suffix}", image.convert(mode))).astype(np.int32)
    assert np.abs(pixels - expected).max() <= 3  # some lose a little


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    path = _saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [0, 0, 255]


def test_what_starts_other_programs_is_not_decoded(tmp_path):
    path = _saved(tmp_path / "a.eps", Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match=r"photo\.jpg: .*unknown format"):
        read_image(path.rename(tmp_path / "photo.jpg"))


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "_FORMATS", ("JPEG", "PNG"))
    monkeypatch.setattr(image_files, "UNREAD_HEIC", (".heic", ".heif"))
    with pytest.raises(ValueError, match=r"a\.heic: .*pip install 'maft_jax\[heic\]'"):
        read_image(_saved(tmp_path / "a.heic", Image.new("RGB", (8, 6))))


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


def _encoded(image, file_format, **options):
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def test_bytes_are_read_like_the_file_that_holds_them(tmp_path):
    data = _encoded(Image.fromarray(RGB), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(data), read_image(tmp_path / "a.png"))
    labels = _encoded(Image.fromarray(RGB[..., 0]), "PNG")
    np.testing.assert_array_equal(read_label_map(labels), RGB[..., 0])


def test_corrupt_bytes_are_named_by_where_they_came_from():
    with pytest.raises(ValueError, match=r"^shard 3, photo 7: cannot be read as an image: unknown"):
        read_image(b"hello", "shard 3, photo 7")
    with pytest.raises(ValueError, match=r"^5 bytes in memory: cannot be read as a label map"):
        read_label_map(b"hello")


@pytest.mark.parametrize(
    "orientation, row, column",
    [(1, 0, 0), (2, 0, 1), (3, 1, 1), (4, 1, 0), (5, 0, 0), (6, 1, 0), (7, 1, 1), (8, 0, 1)],
)
def test_every_exif_orientation_of_a_jpeg_is_turned_upright(orientation, row, column):
    """A white quarter where the EXIF standard stores what is at the top left."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[8 * row : 8 * row + 8, 16 * column : 16 * column + 16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = read_image(_encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95))
    assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    half_height, half_width = upright.shape[0] // 2, upright.shape[1] // 2
    assert upright[:half_height, :half_width].mean() > 250
    assert upright.mean() < 70


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (4000, 6000)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_tiny_and_huge_images_are_read(size, file_format):
    row = np.linspace(0, 255, size[1]).astype(np.uint8)
    image = np.repeat(np.broadcast_to(row, size)[..., None], 3, axis=-1)
    options = {"compress_level": 1} if file_format == "PNG" else {}
    read = read_image(_encoded(Image.fromarray(image), file_format, **options))
    assert read.shape == image.shape
    assert np.abs(read[::97, ::97].astype(int) - image[::97, ::97]).max() <= 2


_LABELS = (np.arange(1200).reshape(30, 40) % 200).astype(np.uint8)


@pytest.mark.parametrize(
    "read, data",
    [
        (read_image, _encoded(Image.fromarray(np.tile(RGB, (5, 8, 1))), "JPEG")),
        (read_image, _encoded(Image.fromarray(np.tile(RGB, (5, 8, 1))), "PNG")),
        (read_image, _encoded(Image.fromarray(np.tile(RGB, (5, 8, 1))).convert("CMYK"), "JPEG")),
        (read_label_map, _encoded(Image.fromarray(_LABELS), "PNG")),
        (read_label_map, _encoded(Image.fromarray(_LABELS.astype(np.uint16) * 300), "PNG")),
        (read_label_map, _encoded(Image.fromarray(_LABELS).convert("P"), "PNG")),
    ],
    ids=["jpeg", "png", "cmyk", "labels", "labels of 16 bits", "palette labels"],
)
def test_file_cut_anywhere_is_an_error_or_complete(read, data):
    """A PNG without the checksum of its empty last chunk still has all pixels."""
    complete = read(data)
    for length in range(len(data)):
        try:
            np.testing.assert_array_equal(read(data[:length]), complete)
        except ValueError as error:
            assert "cannot be read as" in str(error)
        else:
            assert length >= len(data) - 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flipped_bit_of_a_png_is_an_error_or_changes_no_pixel(dtype):
    data = _encoded(Image.fromarray(_LABELS.astype(dtype)), "PNG")
    rng, num_errors = np.random.default_rng(0), 0
    for position in range(len(data)):
        corrupt = bytearray(data)
        corrupt[position] ^= 1 << rng.integers(8)
        try:
            np.testing.assert_array_equal(read_label_map(bytes(corrupt)), _LABELS)
        except ValueError as error:
            num_errors += "cannot be read as a label map" in str(error)
    assert num_errors > 0.9 * len(data)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 17), (300, 200)])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_pillows_own_png_files_have_all_their_rows(size, mode):
    check_rows(_encoded(Image.new(mode, size), "PNG"))
