"""The TFRecord container: length, its checksum, data, their checksum, one record after another.

Described in tensorflow/core/lib/io/record_writer.h: little-endian 64-bit length, 32-bit masked
CRC-32C of the length, data, 32-bit masked CRC-32C of the data.
"""

import struct

import google_crc32c

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _LENGTH.size + _CHECKSUM.size
OVERHEAD = _HEADER_SIZE + _CHECKSUM.size


def masked_crc32c(data: bytes) -> int:
    """CRC-32C rotated and offset, so that checksums of data that hold checksums stay useful."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, data and footer of a record, to be written in this order."""
    length = _LENGTH.pack(len(data))
    return (
        length + _CHECKSUM.pack(masked_crc32c(length)),
        data,
        _CHECKSUM.pack(masked_crc32c(data)),
    )


def unframe(framed: bytes) -> bytes:
    """Data of one whole record; ValueError where it is cut off or corrupt."""
    if len(framed) < OVERHEAD:
        raise ValueError(f"expected a record of at least {OVERHEAD} bytes, got {len(framed)}")
    length, checksum = framed[: _LENGTH.size], framed[_LENGTH.size : _HEADER_SIZE]
    if _CHECKSUM.unpack(checksum)[0] != masked_crc32c(length):
        raise ValueError("the length of the record does not match its checksum")
    expected = _LENGTH.unpack(length)[0] + OVERHEAD
    if len(framed) != expected:
        raise ValueError(f"expected a record of {expected} bytes, got {len(framed)}")
    data = framed[_HEADER_SIZE : -_CHECKSUM.size]
    if _CHECKSUM.unpack(framed[-_CHECKSUM.size :])[0] != masked_crc32c(data):
        raise ValueError("the data do not match their checksum")
    return data
