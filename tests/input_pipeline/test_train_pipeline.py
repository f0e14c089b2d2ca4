import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from input_pipeline.device_batches import to_global_batches
from input_pipeline.examples import IGNORE, PreparedExample
from input_pipeline.train_pipeline import TrainGeometry, example_ids_at, make_train_batches

GEOMETRY = TrainGeometry(32, short_sides=(24, 40), max_long_side=200)


class TinySource:
    class_names = ("wall", "floor", "cat")
    example_ids = tuple(f"scene {i}" for i in range(5))
    fingerprint = "tiny"
    num_proposals = 4
    max_classes_per_image = 3

    def __init__(self, broken=()):
        self.broken = broken
        self.num_reads = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.num_reads += 1
        if index in self.broken:
            raise ValueError(f"{self.example_ids[index]}: the file is torn")
        rng = np.random.default_rng(index)
        height, width = 20 + 3 * index, 36
        return PreparedExample(
            self.example_ids[index],
            rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
            np.repeat(np.arange(width) // 12 - 1, height).reshape(width, height).T.astype(np.int32),
            rng.integers(1, 256, (index, -(-height // 4), 9)).astype(np.uint8),
        )


def _batches(source=None, start_step=0, count=1, size=4, geometry=GEOMETRY, **options):
    stream = make_train_batches(
        source or TinySource(),
        global_batch_size=size,
        seed=7,
        start_step=start_step,
        geometry=geometry,
        num_workers=2,
        **options,
    )
    return list(islice(stream, count))


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_batch_has_the_promised_shapes_and_types():
    [batch] = _batches()
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "label_map": ((4, 32, 32), "int32"),
        "present_classes": ((4, 3), "int32"),
        "proposals": ((4, 4, 8, 8), "uint8"),
        "proposal_valid": ((4, 4), "bool"),
    }


def test_resuming_gives_the_same_batches_bit_for_bit():
    from_start = _batches(count=6)
    for expected, resumed in zip(from_start[4:], _batches(start_step=4, count=2), strict=True):
        _assert_equal(expected, resumed)


def test_resuming_reads_no_more_than_starting():
    source = TinySource()
    _batches(source, start_step=10**12)
    assert source.num_reads < 40


def test_rows_of_two_processes_make_the_global_batch():
    whole = _batches(count=3)
    parts = [_batches(count=3, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(whole):
        joined = {key: np.concatenate([part[step][key] for part in parts]) for key in batch}
        _assert_equal(batch, joined)


def test_arithmetic_names_the_examples_of_a_step():
    source = TinySource()
    geometry = TrainGeometry(32, augment=False)
    [batch] = _batches(source, start_step=3, geometry=geometry)
    ids = example_ids_at(source, step=3, global_batch_size=4, seed=7)
    for name, valid in zip(ids, batch["proposal_valid"], strict=True):
        assert valid.sum() == source.example_ids.index(name)


def test_an_epoch_reads_every_example_once():
    source = TinySource()
    for step in range(3):
        ids = example_ids_at(source, step, global_batch_size=5, seed=0)
        assert sorted(ids) == list(source.example_ids)


def test_present_classes_are_those_of_the_crop():
    for batch in _batches(count=4):
        for labels, present in zip(batch["label_map"], batch["present_classes"], strict=True):
            expected = np.setdiff1d(labels, [IGNORE]).tolist()
            assert present.tolist() == expected + [-1] * (3 - len(expected))


def test_padded_proposals_are_empty_and_marked():
    for batch in _batches(count=2):
        assert not batch["proposals"][~batch["proposal_valid"]].any()


def test_error_of_the_source_reaches_the_caller():
    with pytest.raises(ValueError, match=r"^scene 2: the file is torn$"):
        _batches(TinySource(broken=(2,)), count=2)


def test_first_broken_example_of_the_stream_is_reported():
    first, *_ = example_ids_at(TinySource(), step=0, global_batch_size=4, seed=7)
    with pytest.raises(ValueError, match=first):
        _batches(TinySource(broken=range(5)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 3, "process_count": 2}, "positive multiple of the 2 processes, got 3"),
        ({"start_step": -1}, "start_step"),
        ({"process_index": 1}, "process_index"),
    ],
)
def test_impossible_batching_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _batches(**options)


def test_program_ends_while_the_pipeline_is_reading():
    program = (
        "from tests.input_pipeline.test_train_pipeline import *\n"
        "stream = make_train_batches(TinySource(), global_batch_size=4, seed=0, start_step=0,"
        " geometry=GEOMETRY)\n"
        "next(stream)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert b"Exception ignored" not in result.stderr


def test_global_batches_hold_the_host_batches_in_order():
    import jax

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    host = [{"image": np.full((2, 3), step, np.uint8)} for step in range(5)]
    on_device = list(to_global_batches(iter(host), sharding, prefetch=2))
    assert len(on_device) == 5
    for expected, batch in zip(host, on_device, strict=True):
        assert isinstance(batch["image"], jax.Array)
        np.testing.assert_array_equal(batch["image"], expected["image"])
