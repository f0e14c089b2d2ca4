import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from input_pipeline.examples import IGNORE
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.permutation import example_index
from input_pipeline.train_pipeline import (
    TrainGeometry,
    example_ids_at,
    make_train_dataset,
    make_unaugmented_dataset,
)
from tests.input_pipeline.tiny_source import TinySource

GEOMETRY = TrainGeometry(32, short_sides=(24, 40), max_long_side=200)


def _batches(source=None, start_step=0, count=1, size=4, geometry=GEOMETRY, **options):
    stream = NumpyBatches(
        make_train_dataset(
            source or TinySource(),
            global_batch_size=size,
            start_step=start_step,
            geometry=geometry,
            **{"num_workers": 2, "seed": 7, **options},
        )
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


@pytest.mark.parametrize("start_step", [4, 17, 10_000_000, 2**40 + 1])
def test_resuming_gives_the_same_batches_bit_for_bit(start_step):
    straight = _batches(start_step=start_step, count=4)
    for expected, resumed in zip(
        straight[2:], _batches(start_step=start_step + 2, count=2), strict=True
    ):
        _assert_equal(expected, resumed)


def test_data_set_says_what_its_batches_hold():
    dataset = make_train_dataset(
        TinySource(), global_batch_size=4, seed=7, start_step=0, geometry=GEOMETRY
    )
    [batch] = _batches()
    assert {
        key: (tuple(spec.shape), spec.dtype.name) for key, spec in dataset.element_spec.items()
    } == {key: (value.shape, value.dtype.name) for key, value in batch.items()}


def test_batches_of_different_steps_and_seeds_differ():
    first, second = _batches(count=2)
    assert np.any(first["image"] != second["image"])
    [other] = _batches(seed=8)
    assert np.any(first["image"] != other["image"])


def test_resuming_reads_no_more_than_starting():
    source = TinySource()
    _batches(source, start_step=10**12)
    assert source.num_reads < 40


@pytest.mark.parametrize("num_workers", [1, 3, 16])
def test_number_of_workers_changes_nothing(num_workers):
    expected = _batches(start_step=10_000_000, count=3)
    batches = _batches(start_step=10_000_000, count=3, num_workers=num_workers)
    for first, second in zip(expected, batches, strict=True):
        _assert_equal(first, second)


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("start_step", [0, 123_457, 10_000_000])
def test_rows_of_all_processes_make_the_global_batch(process_count, start_step):
    whole = _batches(count=2, start_step=start_step)
    parts = [
        _batches(
            count=2,
            start_step=start_step,
            process_index=i,
            process_count=process_count,
            num_workers=1 + i % 2,
        )
        for i in range(process_count)
    ]
    for step, batch in enumerate(whole):
        joined = {key: np.concatenate([part[step][key] for part in parts]) for key in batch}
        _assert_equal(batch, joined)


def test_arithmetic_names_the_examples_of_a_step():
    source = TinySource()
    geometry = TrainGeometry(32, augment=False)
    [batch] = _batches(source, start_step=3, geometry=geometry)
    ids = example_ids_at(source, step=3, global_batch_size=4, seed=7)
    for name, valid in zip(ids, batch["proposal_valid"], strict=True):
        assert valid.sum() == source.example_ids.index(name)  # As many proposals as its index.


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("start_step", [0, 10_000_000])
def test_without_augmentation_an_example_depends_on_nothing_but_itself(seed, start_step):
    source, geometry = TinySource(), TrainGeometry(32, augment=False)
    options = {"geometry": geometry, "seed": seed, "start_step": start_step, "count": 3}
    batches = _batches(source, **options)
    indices = example_index(4 * start_step + np.arange(12), len(source), seed).reshape(3, 4)
    by_index = make_unaugmented_dataset(
        source, indices.ravel(), batch_size=4, geometry=geometry, num_workers=2
    )
    for expected, ours in zip(batches, NumpyBatches(by_index), strict=True):
        _assert_equal(expected, ours)


def test_examples_by_index_are_not_augmented():
    with pytest.raises(ValueError, match="geometry: expected augment=False"):
        make_unaugmented_dataset(TinySource(), [0], batch_size=1, geometry=GEOMETRY)


def test_examples_by_index_must_fill_their_batches():
    geometry = TrainGeometry(32, augment=False)
    with pytest.raises(ValueError, match="indices: expected a multiple of batch_size=2, got 3"):
        make_unaugmented_dataset(TinySource(), [0, 1, 2], batch_size=2, geometry=geometry)


@pytest.mark.parametrize("process_count", [1, 2])
def test_rows_per_example_go_with_their_examples(process_count):
    source = TinySource()
    numbers = np.arange(5, dtype=np.float32)
    for step in (0, 10_000_000):
        parts = [
            _batches(
                source,
                start_step=step,
                per_example={"number": numbers},
                process_index=i,
                process_count=process_count,
            )[0]["number"]
            for i in range(process_count)
        ]
        ids = example_ids_at(source, step, global_batch_size=4, seed=7)
        expected = [source.example_ids.index(name) for name in ids]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("step", [3, 2**29])
def test_rows_tell_their_position_in_the_stream(step):
    """The same on any number of processes."""
    expected = [(4 * step + row) % 2**31 for row in range(4)]
    for count in (1, 2):
        options = {"start_step": step, "process_count": count, "with_positions": True}
        parts = [_batches(process_index=i, **options)[0]["position"] for i in range(count)]
        assert np.concatenate(parts).tolist() == expected


def test_rows_per_example_must_be_as_many_as_examples():
    with pytest.raises(ValueError, match="a row of number for each of the 5 examples, got 4"):
        _batches(per_example={"number": np.zeros(4)})


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


class _Contradicting(TinySource):
    """Every example is changed by a function that the source's promises know nothing of."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    def __getitem__(self, index):
        return self._change(super().__getitem__(index))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda example: replace(example, label_map=example.label_map[:, 1:]),
            r"scene \d: expected a label map of the size of the image, \d+x\d+, got \d+x\d+",
        ),
        (
            lambda example: replace(example, proposals=np.ones((5, 2, 2), np.uint8)),
            r"scene \d: has 5 proposals, but its source says that no example has more than 4",
        ),
        (
            lambda example: replace(example, label_map=example.label_map + 2),
            r"scene \d: expected labels -1 \(ignored\) to 2, got 1 to 3",
        ),
    ],
)
def test_example_that_contradicts_itself_or_its_source_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _batches(_Contradicting(change))


def test_more_classes_than_promised_are_refused():
    source = TinySource()
    source.max_classes_per_image = 1
    with pytest.raises(ValueError, match=r"has \d classes, but its source says .* more than 1"):
        _batches(source, count=3)


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


@pytest.mark.slow
def test_program_ends_while_the_pipeline_is_reading():
    program = (
        "import jax\n"
        "from input_pipeline.device_batches import GlobalBatches\n"
        "from tests.input_pipeline.test_train_pipeline import *\n"
        "dataset = make_train_dataset(TinySource(), global_batch_size=4, seed=0, start_step=0,"
        " geometry=GEOMETRY)\n"
        "stream = GlobalBatches(NumpyBatches(dataset), jax.sharding.SingleDeviceSharding("
        "jax.devices()[0]))\n"
        "next(stream)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], timeout=300, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert b"Exception ignored" not in result.stderr
