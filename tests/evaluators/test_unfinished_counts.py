"""Progress lines and the file of unfinished counts, with a clock of our own."""

import logging

import numpy as np
import pytest
from etils import epath

from maft_jax.evaluators import unfinished_counts
from maft_jax.evaluators.evaluation_counts import EvaluationCounts
from maft_jax.evaluators.unfinished_counts import ProgressLines, UnfinishedCounts, key_of


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(unfinished_counts.time, "monotonic", lambda: now[0])
    return now


def lines_of(caplog, clock, num_images, steps, num_done=0):
    with caplog.at_level(logging.INFO, "maft_jax"):
        progress = ProgressLines("voc2012", num_images, num_done)
        for seconds, done in steps:
            clock[0] += seconds
            progress.show(done)
    return [record.getMessage() for record in caplog.records]


def test_speed_leaves_out_the_first_batch_and_lines_come_every_ten_seconds(caplog, clock):
    steps = [(60, 4), (5, 14), (5, 24), (5, 34), (5, 44), (2, 1449)]
    assert lines_of(caplog, clock, 1449, steps) == [
        "voc2012 24/1449 images | 2 images/s | ETA 11:52",
        "voc2012 44/1449 images | 2 images/s | ETA 11:42",
        "voc2012 1449/1449 images | 65.7 images/s | ETA 0:00",
    ]


def test_only_batch_has_a_line(caplog, clock):
    assert lines_of(caplog, clock, 8, [(4, 8)]) == ["voc2012 8/8 images | 2 images/s | ETA 0:00"]


def test_images_of_an_earlier_start_are_not_of_this_speed(caplog, clock):
    steps = [(60, 1010), (10, 1020)]
    lines = lines_of(caplog, clock, 2000, steps, num_done=1000)
    assert lines == ["voc2012 1020/2000 images | 1 images/s | ETA 16:20"]


def counts(number: int) -> EvaluationCounts:
    total = EvaluationCounts(2)
    total.add(np.full((3, 3), number), 9 * number, np.array([[number, 0], [number, number]]))
    return total


def test_counts_are_saved_every_half_minute_and_read_back(tmp_path, clock):
    unfinished = UnfinishedCounts(epath.Path(tmp_path / "new"), "voc2012", "key", 2)
    for seconds, saved in ((20, False), (9, False), (1, True)):
        clock[0] += seconds
        unfinished.save_now_and_then(7, counts(2**40))
        assert (tmp_path / "new/voc2012.unfinished.npz").exists() is saved
    num_batches, found = UnfinishedCounts(epath.Path(tmp_path / "new"), "voc2012", "key", 2).load()
    assert num_batches == 7
    np.testing.assert_array_equal(found.confusion, counts(2**40).confusion)
    np.testing.assert_array_equal(found.masks, counts(2**40).masks)
    other = UnfinishedCounts(epath.Path(tmp_path / "new"), "voc2012", "other", 2)
    num_batches, found = other.load()
    assert num_batches == 0 and found.confusion.sum() == 0
    unfinished.remove()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("damage", ["bit", "unsealed", "zeros"])
def test_damaged_counts_count_as_none(tmp_path, clock, caplog, damage):
    unfinished = UnfinishedCounts(epath.Path(tmp_path), "voc2012", "key", 2)
    unfinished.save(7, counts(2**40))
    path = tmp_path / "voc2012.unfinished.npz"
    content = path.read_bytes()
    at = content.index(counts(2**40).confusion.tobytes()[:16])
    path.write_bytes(
        {
            "bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
            "zeros": content[:at] + bytes(16) + content[at + 16 :],
            "unsealed": content[:-32],
        }[damage]
    )
    num_batches, found = unfinished.load()
    assert num_batches == 0 and found.confusion.sum() == 0
    assert f"{path} is corrupt" in caplog.text


def test_key_does_not_depend_on_the_order_of_settings():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})
