import google_crc32c
import pytest

from input_pipeline.records.tfrecord_framing import OVERHEAD, frame, masked_crc32c, unframe

DATA = bytes(range(40))
FRAMED = b"".join(frame(DATA))


def test_checksums_are_those_of_the_standard_and_computed_in_c():
    assert google_crc32c.implementation == "c"
    # The check value in the catalogue of CRCs, https://reveng.sourceforge.io/crc-catalogue.
    crc = 0xE3069283
    assert google_crc32c.value(b"123456789") == crc
    assert (
        masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    )


def test_data_come_back():
    assert len(FRAMED) == len(DATA) + OVERHEAD
    assert unframe(FRAMED) == DATA
    assert unframe(b"".join(frame(b""))) == b""


@pytest.mark.parametrize("position", range(len(FRAMED)))
def test_a_change_of_any_byte_is_refused(position):
    corrupt = bytearray(FRAMED)
    corrupt[position] ^= 1 << position % 8
    part = "length of the record does" if position < 12 else "data do"
    with pytest.raises(ValueError, match=f"the {part} not match"):
        unframe(bytes(corrupt))


@pytest.mark.parametrize("size", [0, 11, 12, len(FRAMED) - 1])
def test_cut_off_record_is_refused(size):
    with pytest.raises(ValueError, match=r"expected .* bytes"):
        unframe(FRAMED[:size])
    with pytest.raises(ValueError, match="expected a record of 56 bytes, got 57"):
        unframe(FRAMED + b"x")
