import numpy as np
import pytest
import zstandard

from input_pipeline.records.mask_codec import decode_masks, encode_masks


@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 30, 40), (7, 13, 11), (1000, 3, 5), (2, 160, 1)])
def test_masks_come_back_bit_for_bit(shape):
    masks = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    codec, data = encode_masks(masks)
    decoded = decode_masks(codec, data, shape)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, masks)


def test_data_are_a_standard_zstd_frame_of_the_masks_in_row_order():
    masks = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    codec, data = encode_masks(masks)
    assert codec == "zstd"
    assert zstandard.ZstdDecompressor().decompress(data) == bytes(range(24))


def test_strided_masks_are_stored_in_row_order():
    masks = np.arange(24, dtype=np.uint8).reshape(4, 3, 2).T
    codec, data = encode_masks(masks)
    np.testing.assert_array_equal(decode_masks(codec, data, (2, 3, 4)), masks)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3), (-2, -3, 4), (0, 3, 4)])
def test_other_shapes_are_refused(shape):
    codec, data = encode_masks(np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"expected .* of masks|expected masks"):
        decode_masks(codec, data, shape)


def test_frame_of_another_size_than_the_masks_is_not_unpacked(monkeypatch):
    """100 MB in 3 kB: the size the frame declares is compared before anything is allocated."""
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    assert len(bomb) < 20_000
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(ValueError, match=r"expected 24 bytes .* got 100000000"):
        decode_masks("zstd", bomb, (2, 3, 4))


def test_frame_that_declares_a_false_size_is_refused():
    honest = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    assert zstandard.frame_content_size(bytes(honest)) == 1000
    # A single-segment frame holds its size, less 256, in bytes 5 and 6.
    honest[5:7] = (24).to_bytes(2, "little")
    assert zstandard.frame_content_size(bytes(honest)) == 280
    with pytest.raises(ValueError, match="cannot be unpacked"):
        decode_masks("zstd", bytes(honest), (1, 28, 10))


def test_frame_that_declares_no_size_is_refused():
    data = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(24))
    with pytest.raises(ValueError, match="expected 24 bytes"):
        decode_masks("zstd", data, (2, 3, 4))


def test_masks_beyond_what_a_record_holds_are_refused():
    with pytest.raises(ValueError, match="at most 1073741824, got 1099511627776"):
        decode_masks("zstd", b"", (2**20, 2**10, 2**10))


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: b"no"]
)
def test_corrupt_data_are_refused(change):
    codec, data = encode_masks(np.random.default_rng(0).integers(0, 256, (2, 3, 4), np.uint8))
    with pytest.raises(ValueError, match="masks"):
        decode_masks(codec, change(data), (2, 3, 4))


def test_unknown_encoding_is_named():
    with pytest.raises(ValueError, match=r"expected .*'zstd', got 'png'"):
        decode_masks("png", b"", (1, 1, 1))
