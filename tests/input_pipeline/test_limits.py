"""Small files that say they are large: refused with the file and the setting, in little memory."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.class_lists import parse_class_list
from input_pipeline.file_trees import open_tree
from input_pipeline.image_files import read_image, read_label_map
from input_pipeline.records.mask_codec import decode_masks, encode_masks


@pytest.fixture
def little_memory():
    """Python's own memory and NumPy's stays below 64 MiB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def _png(width: int, height: int) -> bytes:
    """Of one bit a pixel, all zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (width // 8 + 1), 2**24)), 9)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [9400, 100_000])
@pytest.mark.parametrize("read", [read_image, read_label_map])
def test_a_small_png_of_many_pixels_is_refused(little_memory, read, side):
    data = _png(side, side)
    assert len(data) < 20_000
    with pytest.raises(
        ValueError, match=r"^a\.png: cannot be read as .*(MAX_PIXELS|exceeds limit)"
    ):
        read(data, "a.png")


def test_a_png_of_few_rows_that_are_very_long_is_refused(little_memory):
    with pytest.raises(
        ValueError, match=r"^a\.png: .* expected at most 65536, .* MAFT_JAX_MAX_SIDE"
    ):
        read_image(_png(4_000_000, 8), "a.png")


def test_a_tiff_of_many_pixels_is_refused(little_memory):
    content = io.BytesIO()
    Image.new("1", (8, 8)).save(content, "TIFF")
    data = content.getvalue()
    for tag in (256, 257):  # width and height, shorts or longs
        at = next(
            data.index(struct.pack("<HHI", tag, kind, 1))
            for kind in (3, 4)
            if struct.pack("<HHI", tag, kind, 1) in data
        )
        data = data[:at] + struct.pack("<HHII", tag, 4, 1, 9400) + data[at + 12 :]
    with pytest.raises(ValueError, match=r"^a\.tif: .*MAFT_JAX_MAX_PIXELS"):
        read_image(data, "a.tif")


def test_a_limit_that_was_raised_is_followed(monkeypatch):
    data = _png(8000, 7000)
    with pytest.raises(ValueError, match="at most 50000000, got 56000000"):
        read_label_map(data, "a.png")
    monkeypatch.setenv("MAFT_JAX_MAX_PIXELS", "56000000")
    assert read_label_map(data, "a.png").shape == (7000, 8000)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_of_zeros_are_not_unpacked_beyond_the_limit(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MAFT_JAX_MAX_UNPACKED_BYTES", str(2**22))
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.bin", bytes(2**23))
    else:
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("a.bin")
            info.size = 2**23
            archive.addfile(info, io.BytesIO(bytes(2**23)))
    with pytest.raises(ValueError, match=rf"bomb\.{kind}.*MAFT_JAX_MAX_UNPACKED_BYTES"):
        open_tree(path).read("a.bin")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path):
    path = tmp_path / "lies.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", bytes(2**20))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 2**20), struct.pack("<I", 100)))
    with pytest.raises(ValueError, match=r"lies\.zip:a\.bin: this part of the archive is corrupt"):
        open_tree(path).read("a.bin")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_whose_last_file_is_cut_off_names_it(tmp_path, suffix):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo("big.bin")
        info.size = 4096
        archive.addfile(info, io.BytesIO(bytes(4096)))
    header = tarfile.TarInfo("big.bin")
    header.size = 8**11 - 1  # of 8 GB, which no buffer should be made for
    data = header.tobuf() + content.getvalue()[512:]
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(ValueError, match=r"cut\.tar"):
        open_tree(path).read("big.bin")


def test_masks_of_a_record_are_bounded(monkeypatch, little_memory):
    codec, data = encode_masks(np.zeros((4, 100, 100), np.uint8))
    monkeypatch.setenv("MAFT_JAX_MAX_UNPACKED_BYTES", "39999")
    with pytest.raises(ValueError, match=r"39999, got 40000.*MAFT_JAX_MAX_UNPACKED_BYTES"):
        decode_masks(codec, data, (4, 100, 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name\n" * 2**20, r"at most 1048576, got 5242880.*MAFT_JAX_MAX_CLASS_LIST_BYTES"),
        (b"cat\n" + b"x" * 501, r"list\.txt:2: .*more than 500 characters"),
        (b"cat\n1" + b" " * 150 + b"x", r"list\.txt:2: .*more than 500 characters, or 100 blanks"),
        (b"9" * 5000 + b"\tcat\n1\tdog", r"list\.txt:1: .*more than 500"),
        (b"9" * 400 + b"\tcat\n1\tdog", r"list\.txt:1: label value 9+ of class 'cat' is larger"),
        (b'{"' + b"9" * 5000 + b'": "cat"}', r"list\.txt\['9+'\]: expected a label value"),
        (b'{"cat": ' + b"9" * 5000 + b"}", r"list\.txt: begins like JSON, but .*4300"),
        (b"[" * 100_000, r"list\.txt: begins like JSON, but .*(recursion|Stack overflow)"),
        (b'{"cat": 1e999}', r"list\.txt"),
        (
            b'[{"id": 1, "name": "a"}, {"id": null, "name": "b"}]',
            r"categories\[1\]: expected a label",
        ),
        (
            b"{" + b", ".join(b'"%d": "a"' % i for i in range(60_000)) + b', "59999": "b"}',
            "the key '59999' stands twice",
        ),
        (b"names:\n" + b"- " * 5000 + b"a", r"list\.txt: "),
        (b"names: [" + b"a," * 150_000 + b"b]", r"list\.txt: expected at most 262144 characters"),
        (
            b"a0: &a0 [x, x]\n"
            + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60))
            + b"names: [cat]\n",
            None,
        ),
    ],
)
def test_class_lists_neither_hang_nor_fail_without_their_name(content, message):
    if message is None:
        assert parse_class_list(content, "list.txt").names == ("cat",)
        return
    with pytest.raises(ValueError, match=message) as error:
        parse_class_list(content, "list.txt")
    assert str(error.value).startswith("list.txt")
