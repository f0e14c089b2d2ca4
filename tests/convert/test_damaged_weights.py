"""Weights that are damaged, or made to take all memory: an error with the file's name, at once."""

import errno
import io
import json
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
import torch

from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.safetensors_file import DIGESTS, find_damage
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.convert.tensor_replacement import replace_tensors
from maft_jax.convert.weights_source import OWN_METADATA
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig
from tests.in_memory_weights import load_state_dict, save_state_dict

pytestmark = pytest.mark.slow

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.ones(5, np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 4
    return bytes(changed)


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    save_state_dict(ARRAYS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_digests_are_zlibs_crc32_and_other_programs_pass_over_them(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        digests = json.loads(file.metadata()[DIGESTS])
    for name, array in ARRAYS.items():
        assert digests[name] == f"{zlib.crc32(array.tobytes()):08x}"
    read = safetensors.numpy.load_file(saved)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)


def test_every_flipped_bit_of_our_safetensors_is_noticed(saved):
    content = saved.read_bytes()
    for position in range(8, len(content)):
        if content[position] == ord(" "):
            continue  # padding behind the header
        saved.write_bytes(flipped(content, position))
        message = find_damage(saved)
        if message is None:  # the key of the digests itself: then there are none, and all is as was
            assert DIGESTS not in open_state_dict(saved)[1]
            for name, array in load_state_dict(saved).items():
                np.testing.assert_array_equal(array, ARRAYS[name])
        else:
            assert message.startswith(str(saved))


def test_opening_reads_no_values_and_a_damaged_tensor_is_named_at_its_first_touch(saved):
    content = saved.read_bytes()
    saved.write_bytes(flipped(content, len(content) - 3))
    tensors, _ = open_state_dict(saved)
    tensors["a"].read()
    with pytest.raises(ValueError, match=r"x\.safetensors: corrupt tensor 'half'.*CRC-32"):
        tensors["half"].read()


def test_files_without_digests_are_read_as_before(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    assert find_damage(tmp_path / "theirs.safetensors") is None
    assert set(load_state_dict(tmp_path / "theirs.safetensors")) == set(ARRAYS)


def test_replaced_tensors_have_new_digests(saved, tmp_path):
    replace_tensors(saved, tmp_path / "new.safetensors", {"a": ARRAYS["a"] + 1})
    assert find_damage(tmp_path / "new.safetensors") is None
    assert load_state_dict(tmp_path / "new.safetensors")["a"][0, 0] == 1


def test_template_that_cannot_be_read_to_its_end_is_named_and_not_the_destination(
    saved, tmp_path, monkeypatch
):
    class Torn(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    def opened(path, mode):
        return Torn() if mode == "rb" else open(path, mode)

    monkeypatch.setattr("maft_jax.convert.tensor_replacement.open", opened, raising=False)
    with pytest.raises(OSError, match="Input/output error") as caught:
        replace_tensors(saved, tmp_path / "new.safetensors", {"a": ARRAYS["a"]})
    assert caught.value.filename == str(saved)


@pytest.mark.parametrize("entry", ["data/0", "data.pkl"])
def test_a_flipped_bit_in_a_pt_file_is_noticed(tmp_path, entry):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"x/{entry}")
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, whole.index(content) + len(content) // 2))
    with pytest.raises(ValueError, match=rf"x\.pt: .*entry '{entry}' do not match their CRC-32"):
        load_state_dict(path)


def test_a_pt_file_that_was_saved_without_crc32_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(100.0)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(load_state_dict(tmp_path / "x.pt")["w"], np.arange(100))


def _archive(path: pathlib.Path, pickled: bytes, storage: bytes = b"") -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", storage)
    return path


_STORAGE = (
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)
_SHARED_LISTS = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
_SHARED_TUPLES = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (_SHARED_LISTS + b".", "share their parts too often"),
        (b"\x80\x02}" + _SHARED_TUPLES[2:] + b"K\x01s.", "a key of type tuple that is nested"),
        (b"\x80\x04\x8f(" + _SHARED_TUPLES[2:] + b"\x90.", "a key of type tuple that is nested"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "holds no tensors"),  # a memo of gigabytes in C
        (
            b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
            r"data\.pkl: UnpicklingError: it is truncated",
        ),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", r"data\.pkl"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", r"data\.pkl"),
    ],
)
def test_small_pickles_neither_hang_nor_take_memory(tmp_path, pickled, message):
    with pytest.raises(ValueError, match=rf"x\.pt: .*{message}"):
        open_state_dict(_archive(tmp_path / "x.pt", pickled))


def test_small_pickles_before_1_6_do_not_hang_either(tmp_path):
    """Magic number and protocol of torch's legacy files, then what nobody should hash."""
    start = b"".join(pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001, {}))
    shared = b"\x80\x02}q\x00" + b"".join(
        b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cuq%c" % (i, i, i + 1) for i in range(60)
    )
    for content, message in (
        (b"\x80\x02}" + _SHARED_TUPLES[2:] + b"K\x01s.", "a key of type tuple that is nested"),
        (shared + b".", "share their parts too often"),
    ):
        path = tmp_path / "x.pt"
        path.write_bytes(start + content + pickle.dumps([], 2))
        with pytest.raises(ValueError, match=rf"x\.pt: .*{message}"):
            load_state_dict(path)


def test_strides_that_wrap_around_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(6.0).reshape(3, 2)}, path)
    with zipfile.ZipFile(path) as archive:
        pickled, storage = archive.read("x/data.pkl"), archive.read("x/data/0")
    strides = b"K\x02K\x01\x86"
    assert pickled.count(strides) == 1
    huge = b"\x8a\x08" + struct.pack("<q", 2**61 + 2)  # times 4 bytes: 8
    _archive(path, pickled.replace(strides, huge + b"K\x01\x86"), storage)
    with pytest.raises(ValueError, match=r"x\.pt: .*tensor 'w': shape \(3, 2\)"):
        open_state_dict(path)


def _npz(path: pathlib.Path, header: str, data: bytes, compression=zipfile.ZIP_STORED, flags=0):
    encoded = header.encode() + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + data
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("w.npy", npy)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    path.write_bytes(
        content[:6] + bytes([flags]) + content[7 : at + 8] + bytes([flags]) + content[at + 9 :]
    )
    return path


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ("(1000000000000,)", {}, r"expected 4000000000000 bytes for shape"),
        ("(4294967296, 4294967296, 2)", {}, r"corrupt array 'w': expected"),
        ("(-1,)", {}, "a shape of negative sizes"),
        ("(2,)", {"flags": 1}, "corrupt array 'w': .*(encrypted|password)"),
        ("(2, 'x')", {}, "corrupt array 'w'"),
        ("(" * 200, {}, "corrupt array 'w'"),
    ],
)
def test_impossible_npz_arrays_are_refused_before_memory_is_taken(tmp_path, shape, given, message):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    path = _npz(tmp_path / "x.npz", header, bytes(8), **given)
    with pytest.raises(
        ValueError, match=rf"x\.npz: {message}|x\.npz: corrupt array 'w': {message}"
    ):
        load_state_dict(path)


def test_a_compressed_array_above_the_limit_names_the_setting(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(1000, np.float32))
    assert load_state_dict(tmp_path / "x.npz")["w"].shape == (1000,)
    monkeypatch.setenv("MAFT_JAX_MAX_UNPACKED_BYTES", "3999")
    with pytest.raises(ValueError, match=r"x\.npz: .*3999, got 4000.*MAFT_JAX_MAX_UNPACKED_BYTES"):
        load_state_dict(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_flipped_bit_of_an_npz_gives_the_same_values_or_an_error(tmp_path, save):
    path, values = tmp_path / "x.npz", np.arange(6, dtype=np.float32)
    save(path, w=values)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flipped(content, position))
        try:
            read = load_state_dict(path)
        except ValueError as error:
            assert "x.npz" in str(error)
        else:
            assert [v.tobytes() for v in read.values()] == [values.tobytes()], position


TINY = ClipConfig(VisionConfig(64, 2, 16, 32, 16), TextConfig(64, 1, 50, 9, 16))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    weights = ClipWeights.of(TINY, random_parameters(TINY), MaskingSpec(1, 48))
    write_weights(weights, path, "openai")
    return path


ODD = [None, True, -1, 0, 10**9, 10**30, 2.5, 1e-400, "7", "", [], [1], {}, {"a": 1}]
PLACES = [
    ("format",),
    ("vision",),
    ("text",),
    ("tuning",),
    *(("vision", name) for name in ("width", "layers", "patch_size", "image_size", "embed_dim")),
    *(("vision", name) for name in ("head_width", "mlp_width", "activation", "norm_epsilon")),
    *(("vision", name) for name in ("has_ln_pre", "pixel_range")),
    *(("text", name) for name in ("width", "layers", "vocab_size", "context_length")),
    ("tuning", "mask_start_layer"),
    ("tuning", "image_size"),
]


@pytest.mark.parametrize("place", PLACES)
def test_odd_values_in_our_own_metadata_are_refused_or_right(clip_file, tmp_path, place):
    tensors, metadata = open_state_dict(clip_file)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    for value in ODD:
        own = json.loads(metadata[OWN_METADATA])
        *parents, last = place
        part = own[parents[0]] if parents else own
        part[last] = value
        path = tmp_path / "odd.safetensors"
        safetensors.numpy.save_file(arrays, path, {OWN_METADATA: json.dumps(own)})
        try:
            read = read_weights(path)
        except ValueError as error:
            assert "odd.safetensors" in str(error) and len(str(error)) < 2000
        else:
            assert read.config.vision.layers == 2 and read.config.vision.width == 64
            assert (read.masking or MaskingSpec(1, 48)).image_size == 48


@pytest.mark.parametrize("digests", ["[" * 3000, "[]", "", "NaN"])
def test_digests_that_are_none_are_refused_with_the_file(tmp_path, digests):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path, {DIGESTS: digests})
    with pytest.raises(ValueError, match=rf"w\.safetensors: corrupt .*{DIGESTS}"):
        open_state_dict(path)
