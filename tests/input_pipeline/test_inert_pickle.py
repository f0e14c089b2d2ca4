import builtins
import codecs
import os
import pickle
import struct

import numpy as np
import pytest

from input_pipeline.layouts.inert_pickle import StandIn, read_inert_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Pickles into an instruction to call `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_containers_come_as_they_were():
    value = {"names": ["a", "b"], "pairs": (1, 2.5, None), b"raw": {True}}
    plain = {key: item for key, item in value.items() if key != b"raw"}
    assert read_inert_pickle(pickle.dumps(value, protocol=4), "x") == value
    for protocol in PROTOCOLS:
        assert read_inert_pickle(pickle.dumps(plain, protocol), "x") == plain


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_are_not_rebuilt_but_strings_in_them_are_kept(protocol):
    index = {
        "counts": np.arange(6, dtype=np.float32).reshape(2, 3),
        "strided": np.asfortranarray(np.eye(3)),
        "names": np.array(["wall", "sky"], object),
        "number": np.float64(3),
    }
    read = read_inert_pickle(pickle.dumps(index, protocol), "x")
    assert {key: type(value) for key, value in read.items()} == dict.fromkeys(index, StandIn)
    assert read["names"].items == ["wall", "sky"]
    assert read["counts"].items is None


@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_old_and_new_numpy_are_read(core):
    data = pickle.dumps({"names": np.array(["wall"], object)}, protocol=0)
    data = data.replace(b"numpy._core.", f"numpy.{core}.".encode())
    assert f"numpy.{core}.multiarray".encode() in data
    assert read_inert_pickle(data, "x")["names"].items == ["wall"]


def test_strings_of_python_2_are_read():
    python_2 = b"(dp0\nS'folder'\np1\n(lp2\nS'images/caf\\xc3\\xa9'\np3\nas."
    assert read_inert_pickle(python_2, "x") == {"folder": ["images/café"]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {file}",), "system"),
        (eval, ("open('{file}', 'w')",), "eval"),
        (exec, ("open('{file}', 'w')",), "exec"),
        (getattr, ("text", "upper"), "getattr"),
        (builtins.__import__, ("os",), "__import__"),
        (np.save, ("{file}", 1), "save"),
        (np.load, ("{file}",), "load"),
        (np.frombuffer, (b"abcd",), "frombuffer"),
        (codecs.decode, (b"", "zip"), "decode"),
        (struct.unpack, ("I", b"abcd"), "unpack"),
        (bytearray, (b"a",), "bytearray"),
    ],
)
def test_no_other_function_runs(tmp_path, function, arguments, name, protocol):
    file = tmp_path / "made.npy"
    arguments = tuple(a.format(file=file) if isinstance(a, str) else a for a in arguments)
    data = pickle.dumps({"names": [Calls(function, *arguments)]}, protocol)
    with pytest.raises(ValueError, match=rf"^index\.pkl: .*asks to run [\w.]*\.{name};"):
        read_inert_pickle(data, "index.pkl")
    assert not file.exists()


def _program(*instructions: bytes) -> bytes:
    return b"".join((b"\x80\x04", *instructions, b"."))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_program(_text("numpy"), _text("ndarray.tofile"), b"\x93"), "numpy.ndarray.tofile"),
        (_program(_text("numpy"), _text("os.system"), b"\x93"), "numpy.os.system"),
        (_program(_text("numpy.core"), _text("multiarray"), b"\x93"), "numpy.core.multiarray"),
        (b"cos\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n.", "__builtin__.eval"),
        (b"(S'id'\nios\nsystem\n.", "os.system"),
        (b"Pthere\n.", "persistent object, 'there'"),
        (b"\x80\x02\x82\x01.", "extension"),
        (b"", "Ran out of input"),
        (b"not a pickle", "cannot be read as a pickle"),
        (b"\x80\x04]\x94(", "cannot be read as a pickle"),
        (b"\x80\x04\x8c\xff", "cannot be read as a pickle"),
    ],
)
def test_handmade_programs_and_damage_are_refused(data, message):
    with pytest.raises(ValueError, match=r"^x: ") as error:
        read_inert_pickle(data, "x")
    assert message in str(error.value)


def test_the_stand_in_itself_cannot_be_changed():
    """The instruction BUILD (b) sets attributes of what it finds, here of the class."""
    state = b"N}" + _text("items") + b"]s\x86"
    program = _program(_text("numpy"), _text("ndarray"), b"\x93", state, b"b")
    with pytest.raises(ValueError, match=r"^x: cannot be read"):
        read_inert_pickle(program, "x")
    assert "items" not in vars(StandIn)


def test_tampered_dtype_reaches_no_numpy_code():
    """An object array whose elements come as raw bytes: NumPy would take them for addresses."""
    honest = pickle.dumps(np.array(["a"], object), protocol=2)
    elements = honest[honest.rindex(b"]") :]
    tampered = honest.replace(elements, b"U\x08" + b"\x41" * 8 + b"tb.")
    read = read_inert_pickle(tampered, "x")
    assert isinstance(read, StandIn)
    assert read.items is None


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # a memo of gigabytes in C's machine
        b"\x80\x02})q\x00"
        + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
        + b"K\x01s.",
    ],
)
def test_small_pickles_neither_hang_nor_take_memory(pickled):
    try:
        assert read_inert_pickle(pickled, "index.pkl") == 1
    except ValueError as error:
        assert str(error).startswith("index.pkl: cannot be read as a pickle: a key of type tuple")
