"""tf.train.Example messages, read and written by hand.

TensorFlow takes seconds to import in every worker process, and the protobuf library's compiled
messages have twice ended a process while several threads read records. The format is small: the
wire format of protocol buffers (protobuf.dev/programming-guides/encoding) with the fields of
tensorflow/core/example/{example,feature}.proto, whose numbers are fixed for good:

    Example {1: Features}           Features {1: repeated entry {1: name, 2: Feature}}
    Feature {1: BytesList} or {2: FloatList} or {3: Int64List}, each list {1: repeated value}
"""

import operator
import struct
from collections.abc import Iterator, Mapping

Feature = list[bytes] | list[int] | list[float]

_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
"""How a field's value is laid out, in the three low bits of its tag."""
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
"""Numbers of the fields of Feature."""
_Field = tuple[int, int, bytes | int]
"""Number, layout and value."""


def encode_features(features: Mapping[str, Feature]) -> bytes:
    """Serializes named lists of bytes, integers or floats; equal features give equal bytes.

    They are those of protobuf's deterministic serialization, in which a name comes after longer
    names that begin with it. Integers may be numpy's.

    Raises:
        ValueError: a list has other values, or integers of more than 64 bits.
    """
    names = sorted(features, key=lambda name: name.encode() + b"\xff")
    entries = b"".join(
        _block(1, _block(1, name.encode()) + _block(2, _encode_feature(name, features[name])))
        for name in names
    )
    return _block(1, entries) if names else b""


def decode_features(data: bytes) -> dict[str, Feature]:
    """The named lists of a serialized message; ValueError where it is none."""
    features: dict[str, Feature] = {}
    try:
        for block in _blocks(data, 1):
            for entry in _blocks(block, 1):
                name = b"".join(_blocks(entry, 1)[-1:]).decode()
                features[name] = _decode_feature(b"".join(_blocks(entry, 2)))
    except (IndexError, struct.error, ValueError) as error:
        raise ValueError(f"expected a tf.train.Example message: {error}") from None
    return features


def _encode_feature(name: str, values: Feature) -> bytes:
    if not values:
        return _block(_INTEGERS, b"")
    if all(isinstance(value, bytes) for value in values):
        return _block(_BYTES, b"".join(_block(1, value) for value in values))
    if all(isinstance(value, float) for value in values):
        return _block(_FLOATS, _block(1, struct.pack(f"<{len(values)}f", *values)))
    integers = [_integer(value) for value in values]
    if None in integers:
        first = values[integers.index(None)]
        types = sorted({type(value).__name__ for value in values})
        raise ValueError(
            f"feature {name!r}: expected bytes alone, floats alone or integers of 64 bits alone, "
            f"got {', '.join(types)}, of which {first!r} is no such integer; convert them"
        )
    return _block(_INTEGERS, _block(1, b"".join(map(_varint, integers))))


def _integer(value: object) -> int | None:
    """Also of a numpy integer; a truth value is none."""
    try:
        integer = operator.index(value)
    except TypeError:
        return None
    return None if isinstance(value, bool) or not -(2**63) <= integer < 2**63 else integer


def _decode_feature(data: bytes) -> Feature:
    """Several lists of one kind are one; of several kinds the last counts."""
    kind, values = 0, []
    for number, layout, block in _fields(data):
        if number not in (_BYTES, _FLOATS, _INTEGERS) or layout != _LENGTH:
            continue
        if number != kind:
            kind, values = number, []
        for inner, inner_layout, value in _fields(block):
            if inner == 1:
                values += _decode_values(kind, inner_layout, value)
    return values


def _decode_values(kind: int, layout: int, value: bytes | int) -> Feature:
    """One value of a list, or several where numbers are packed."""
    if kind == _BYTES and layout == _LENGTH:
        return [value]
    if kind == _FLOATS and layout in (_LENGTH, _FIXED_32):
        return list(struct.unpack(f"<{len(value) // 4}f", value))
    if kind == _INTEGERS and layout == _VARINT:
        return [_signed(value)]
    if kind == _INTEGERS and layout == _LENGTH:
        numbers, position = [], 0
        while position < len(value):
            number, position = _read_varint(value, position)
            numbers.append(_signed(number))
        return numbers
    raise ValueError(f"a value of layout {layout} in a list of kind {kind}")


def _blocks(data: bytes, number: int) -> list[bytes]:
    """Fields of that number whose values are bytes; others are passed over."""
    return [value for field, layout, value in _fields(data) if (field, layout) == (number, _LENGTH)]


def _fields(data: bytes) -> Iterator[_Field]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        layout = tag & 7
        if tag <= 7:
            raise ValueError("a field without a number")
        if layout == _VARINT:
            value, position = _read_varint(data, position)
        else:
            if layout == _LENGTH:
                size, position = _read_varint(data, position)
            elif layout in (_FIXED_64, _FIXED_32):
                size = 8 if layout == _FIXED_64 else 4
            else:
                raise ValueError(f"a field of layout {layout}")
            value, position = data[position : position + size], position + size
            if position > len(data):
                raise ValueError("it ends in the middle of a field")
        yield tag >> 3, layout, value


def _block(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; negative numbers as their two's complement of 64 bits."""
    number &= 2**64 - 1
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & 2**64 - 1, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _signed(number: int) -> int:
    return number - 2**64 if number >> 63 else number
