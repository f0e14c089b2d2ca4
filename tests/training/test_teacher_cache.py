"""What is on disk is what was computed for exactly this, or it counts as missing."""

import json
import logging
import shutil

import numpy as np
import pytest
from etils import epath

from maft_jax.training import teacher_cache
from maft_jax.training.teacher_cache import TeacherCache

DESCRIPTION = {"num_images": 10, "num_classes": 3, "temperature": 100.0, "compute_dtype": "float32"}


@pytest.fixture(autouse=True)
def parts_of_four(monkeypatch):
    monkeypatch.setattr(teacher_cache, "PART_SIZE", 4)


@pytest.fixture
def rows():
    return np.random.default_rng(0).random((10, 3), np.float32)


def make_cache(folder, **changes):
    return TeacherCache(epath.Path(folder), DESCRIPTION | changes)


def fill(cache, rows):
    for part in range(cache.num_parts):
        examples = cache.examples_of(part)
        cache.write_part(part, rows[examples.start : examples.stop])


def test_rows_come_back_in_the_order_of_the_examples(tmp_path, rows):
    cache = make_cache(tmp_path)
    assert [len(cache.examples_of(part)) for part in range(cache.num_parts)] == [4, 4, 2]
    fill(cache, rows)
    read = make_cache(tmp_path).read()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, rows)


def test_files_are_readable_without_this_program(tmp_path, rows):
    cache = make_cache(tmp_path)
    fill(cache, rows)
    files = sorted(path.name for path in cache.folder.iterdir())
    assert files == [*(f"0000{i}-of-00003.npy" for i in range(3)), "teacher.json"]
    np.testing.assert_array_equal(np.load(cache.folder / files[1]), rows[4:8])
    description = json.loads((cache.folder / "teacher.json").read_text())
    assert DESCRIPTION.items() <= description.items()


def test_missing_parts_are_known_and_named(tmp_path, rows):
    cache = make_cache(tmp_path)
    assert cache.missing_parts() == [0, 1, 2]
    cache.write_part(1, rows[4:8])
    assert cache.missing_parts() == [0, 2] and cache.missing_parts([1]) == []
    with pytest.raises(ValueError, match=r"2 of 3 parts of .*teacher-.*precompute_proposals"):
        cache.read()


@pytest.mark.parametrize("position", [3, 70, 140, -1])
def test_any_changed_byte_makes_a_part_missing(tmp_path, rows, caplog, position):
    cache = make_cache(tmp_path)
    fill(cache, rows)
    path = cache.folder / "00001-of-00003.npy"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        assert cache.missing_parts() == [1]
    assert "00001-of-00003.npy is corrupt" in caplog.text


@pytest.mark.parametrize("size", [0, 5, 150])
def test_truncated_part_is_missing(tmp_path, rows, size):
    cache = make_cache(tmp_path)
    fill(cache, rows)
    path = cache.folder / "00001-of-00003.npy"
    path.write_bytes(path.read_bytes()[:size])
    assert cache.missing_parts() == [1]


@pytest.mark.parametrize(
    "change", [{"temperature": 50.0}, {"compute_dtype": "bfloat16"}, {"image_size": 64}]
)
def test_what_was_computed_for_something_else_is_never_read(tmp_path, rows, change):
    cache, other = make_cache(tmp_path), make_cache(tmp_path, **change)
    fill(cache, rows)
    assert other.folder != cache.folder and other.missing_parts() == [0, 1, 2]
    shutil.copytree(cache.folder, other.folder)
    assert other.missing_parts() == [0, 1, 2]


def test_part_under_the_name_of_another_is_missing(tmp_path, rows):
    cache = make_cache(tmp_path)
    fill(cache, rows)
    shutil.copy(cache.folder / "00000-of-00003.npy", cache.folder / "00001-of-00003.npy")
    assert cache.missing_parts() == [1]


def test_missing_cache_tells_how_those_that_are_there_differ(tmp_path, rows):
    fill(make_cache(tmp_path), rows)
    with pytest.raises(ValueError, match=r"is for compute_dtype 'float32' there, 'bfloat16' now$"):
        make_cache(tmp_path, compute_dtype="bfloat16").read()


def test_rows_of_another_shape_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=r"part 2: expected rows of shape \(2, 3\), got \(4, 3\)"):
        make_cache(tmp_path).write_part(2, rows[:4])
