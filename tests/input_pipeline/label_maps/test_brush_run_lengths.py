import numpy as np
import pytest

from input_pipeline.label_maps.brush_run_lengths import decode_brush, decode_values
from tests.input_pipeline.label_maps.brush_encoder import encode_mask, encode_values

# Of the tests of label-studio-converter, which encodes these values so.
VALUES = [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4]
BYTES = [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]


def test_bytes_of_label_studio_give_its_values():
    assert decode_values(BYTES, 18).tolist() == VALUES


def test_header_and_first_runs_of_an_exported_mask():
    """The beginning of one of 3332 x 2527: runs of 65536 zeros, of which two are kept here."""
    header = [2, 1, 233, 240, 57, 27, 255]
    assert int.from_bytes(header[:4]) == 3332 * 2527 * 4
    cut = [0, 2, 0, 0, *header[4:], 255, 255, 0, 255, 255, 224, 0]
    assert not decode_values(cut, 2 * 65536).any()


@pytest.mark.parametrize("bits", [1, 8, 13, 32])
@pytest.mark.parametrize("literal", [False, True])
def test_any_width_of_values_is_read(bits, literal):
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 2**bits, 300).repeat(rng.integers(1, 40, 300)).tolist()
    assert decode_values(encode_values(values, bits, literal), len(values)).tolist() == values


def test_runs_longer_than_a_block_are_read():
    values = [3] * 200_000 + [0] * 65_536 + [9]
    assert decode_values(encode_values(values), len(values)).tolist() == values


@pytest.mark.parametrize("literal", [False, True])
def test_mask_is_where_alpha_is_above_zero(literal):
    mask = np.random.default_rng(0).random((9, 14)) > 0.6
    for color in ((170, 21, 255, 255), (0, 0, 0, 1), (7, 7, 7, 7)):
        decoded = decode_brush(encode_mask(mask, color, literal=literal), mask.shape)
        np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "ends early: 32 bits are to be read at bit 0 of 0"),
        (BYTES[:6], "ends early: 4 bits are to be read at bit 45 of 48"),
        (BYTES[:-1], "ends early"),
        ([0, 0, 0, 19, *BYTES[4:]], "expected 18 values, red, .* 21 bytes say that they hold 19"),
        ([*BYTES[:-1], 33, 5], "bits follow the last value"),
        ([*BYTES, 1], "9 bits follow the last value|bits follow the last value, at bit"),
        ([*BYTES, 256], "expected a list of bytes, 0 to 255"),
        (["a"], "expected a list of bytes"),
        (None, "expected a list of bytes"),
    ],
)
def test_corrupt_bytes_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_values(data, 18)


def test_runs_beyond_the_last_value_are_refused():
    long = encode_values([1] * 24)
    with pytest.raises(ValueError, match="24 values do not fit after 0 of 18"):
        decode_values([0, 0, 0, 18, *long[4:]], 18)


def test_a_number_of_values_that_no_bytes_can_hold_takes_no_memory():
    with pytest.raises(ValueError, match="21 bytes say that they hold 4,294,967,295"):
        decode_values([255] * 4 + BYTES[4:], 2**32 - 1)


def test_every_cut_and_every_flipped_bit_is_refused_or_gives_18_values():
    for end in range(len(BYTES)):
        with pytest.raises(ValueError):
            decode_values(BYTES[:end], 18)
    for bit in range(8 * len(BYTES)):
        corrupt = list(BYTES)
        corrupt[bit // 8] ^= 128 >> bit % 8
        try:
            assert decode_values(corrupt, 18).shape == (18,)
        except ValueError as error:
            assert str(error).startswith("rle: ")
