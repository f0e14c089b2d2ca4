"""npz files: what NumPy writes is read, what we write NumPy reads, and pickles stay closed."""

import os
import zipfile

import ml_dtypes
import numpy as np
import pytest

from maft_jax.convert.state_dict_io import open_state_dict
from tests.in_memory_weights import load_state_dict, save_state_dict

ARRAYS = {
    "params/img/cls": np.arange(6, dtype=np.float32).reshape(1, 1, 6),
    "params/t": np.float32(2.5),
    "half": np.ones((2, 3), np.float16),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "empty": np.zeros((0, 3), np.float32),
    "brain": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
}


def assert_equal(read, expected):
    assert set(read) == set(expected)
    for name, array in expected.items():
        assert read[name].dtype == np.asarray(array).dtype, name
        np.testing.assert_array_equal(read[name], array, err_msg=name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    tensors, _ = open_state_dict(tmp_path / "x.npz")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: np.shape(array) for name, array in ARRAYS.items()
    }
    assert_equal(load_state_dict(tmp_path / "x.npz"), ARRAYS)


def test_what_we_write_numpy_reads(tmp_path):
    save_state_dict(ARRAYS, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        for name, array in ARRAYS.items():
            read = archive[name]  # bfloat16 comes as two bytes without a name
            assert read.tobytes() == np.asarray(array).tobytes() or name == "fortran", name
    assert_equal(load_state_dict(tmp_path / "x.npz"), ARRAYS)
    assert os.listdir(tmp_path) == ["x.npz"]


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_array_of_objects_is_never_unpickled(tmp_path):
    bomb = np.array([Bomb(tmp_path / "executed")], dtype=object)
    np.savez(tmp_path / "x.npz", fine=np.ones(2), bomb=bomb, allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npz: the array 'bomb' holds Python objects"):
        open_state_dict(tmp_path / "x.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["header", "data", "end"])
def test_corrupt_archive_is_refused(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez(path, w=np.ones(1000, np.float32))
    content = bytearray(path.read_bytes())
    if damage == "end":
        content = content[:-30]
    else:
        start = content.index(b"\x93NUMPY")
        content[start + (0 if damage == "header" else 300)] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: .*corrupt"):
        load_state_dict(path)


def test_archive_of_other_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", b"")
        archive.writestr("notes.txt", b"")
    with pytest.raises(ValueError, match=r"x\.npz: a zip file with 0 entries named"):
        load_state_dict(tmp_path / "x.npz")
