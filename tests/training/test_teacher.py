"""The cached teacher says what the step's own would, whoever computed it, and however often."""

import contextlib
import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.examples import PreparedSource
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.train_pipeline import make_train_dataset
from maft_jax.models.towers.tips import TipsConfig
from maft_jax.resolved_config import resolve
from maft_jax.runtime import tree_rules
from maft_jax.training import teacher_cache
from maft_jax.training.teacher import (
    Teacher,
    cached_probabilities,
    compute_missing,
    open_teacher,
)
from maft_jax.training.train_loop import train_and_evaluate
from maft_jax.training.training_data import batch_shapes, open_training_data, train_geometry
from tests.runs import make_data, read_metrics, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("steps_compiled_once")]

SETTINGS = {"data.augment": False, "loss.cached_teacher": True}


@pytest.fixture(autouse=True)
def parts_of_three(monkeypatch):
    """So that the eight images make three parts."""
    monkeypatch.setattr(teacher_cache, "PART_SIZE", 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = make_data(tmp_path_factory.mktemp("sample")) | SETTINGS
    open_training_data(small_config(data))
    return data


@pytest.fixture(scope="module")
def teacher(data):
    return open_teacher(small_config(data))


@pytest.fixture
def empty(teacher):
    """The teacher with nothing in its cache."""
    forget(teacher)
    return teacher


def forget(teacher):
    if teacher.cache.folder.exists():
        shutil.rmtree(teacher.cache.folder)


class Interrupting:
    """A source that is interrupted when an example is read."""

    def __init__(self, source, index):
        self._source, self._index = source, index
        for name in PreparedSource.__annotations__:  # Python 3.12 does not ask __getattr__ for them
            setattr(self, name, getattr(source, name))

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if index == self._index:
            raise KeyboardInterrupt
        return self._source[index]


def test_each_row_is_a_distribution_of_its_image(empty):
    rows = cached_probabilities(empty)
    assert rows.shape == (8, 8) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    assert np.unique(rows.round(6), axis=0).shape == rows.shape


def test_second_time_nothing_is_computed(empty, caplog):
    first = cached_probabilities(empty)
    caplog.clear()
    with caplog.at_level(logging.INFO, "maft_jax"):
        second = cached_probabilities(
            dataclasses.replace(empty, source=Interrupting(empty.source, 0))
        )
    assert "computing teacher probabilities" not in caplog.text
    np.testing.assert_array_equal(second, first)


def test_interrupted_computation_keeps_its_parts_and_goes_on(empty):
    expected = cached_probabilities(empty)
    forget(empty)
    with pytest.raises(KeyboardInterrupt):
        compute_missing(dataclasses.replace(empty, source=Interrupting(empty.source, 7)))
    kept = empty.cache.missing_parts()
    assert kept == [2]
    names = {path.name for path in empty.cache.folder.iterdir()}
    assert names == {"teacher.json", "00000-of-00003.npy", "00001-of-00003.npy"}
    compute_missing(dataclasses.replace(empty, source=Interrupting(empty.source, 0)))
    np.testing.assert_array_equal(empty.cache.read(), expected)


def test_what_a_killed_process_left_is_removed(empty):
    empty.cache.folder.mkdir(parents=True)
    (empty.cache.folder / ".00000-of-00002.npy.89abcdef").write_bytes(b"half")
    compute_missing(empty)
    assert not [path for path in empty.cache.folder.iterdir() if path.name.startswith(".")]


def test_corrupt_part_alone_is_computed_again(empty):
    expected = cached_probabilities(empty)
    path = empty.cache.folder / "00002-of-00003.npy"
    path.write_bytes(path.read_bytes()[:-7])
    again = dataclasses.replace(empty, source=Interrupting(empty.source, 0))
    np.testing.assert_array_equal(cached_probabilities(again), expected)


def test_processes_share_the_parts(empty):
    expected = cached_probabilities(empty)
    forget(empty)
    compute_missing(empty, process_index=1, process_count=2)
    assert empty.cache.missing_parts() == [0, 2]
    compute_missing(empty, process_index=0, process_count=2)
    np.testing.assert_array_equal(empty.cache.read(), expected)


def test_several_hosts_do_not_all_compute_the_same(empty, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"3 of 3 parts .* python -m maft_jax\.cli\.precompute"):
        cached_probabilities(empty)
    assert not empty.cache.folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"loss__logit_scale": 50.0},
        {"model__image_size": 48},
        {"model__compute_dtype": "bfloat16"},
        {"data__crop_size": 48},
        {"data__templates": ("a {}",)},
        {"data__unseen_classes": ("sand",)},
        {"proposals__num_proposals": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_have_another_cache(data, teacher, change):
    config = resolve(small_config(data, **change), teacher.clip, None, teacher.mesh)
    source = open_training_data(config)
    other = Teacher(config, teacher.clip, teacher.parameters, source, teacher.mesh)
    assert other.cache.folder.name != teacher.cache.folder.name


def test_another_class_token_has_another_cache(data, teacher):
    clip = dataclasses.replace(teacher.clip, vision=TipsConfig(16, 2, 16, 64, 32, 8))
    first, second = (
        dataclasses.replace(
            teacher,
            clip=clip,
            config=resolve(small_config(data, model__class_token=token), clip, None, teacher.mesh),
        )
        for token in (0, 1)
    )
    assert first.cache.folder.name != second.cache.folder.name


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_other_weights_have_another_cache(teacher, tower):
    scaled = jax.tree.map(lambda leaf: leaf * 1.01, teacher.parameters[tower])
    other = dataclasses.replace(teacher, parameters=teacher.parameters | {tower: scaled})
    assert other.cache.folder.name != teacher.cache.folder.name


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"model__mask_start_layer": 1},
        {"loss__distillation_weight": 1.0},
        {"optimizer__learning_rate": 0.1},
        {"batch_size": 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_the_teacher_does_not_see_share_a_cache(data, teacher, change):
    config = resolve(small_config(data, **change), teacher.clip, None, teacher.mesh)
    other = dataclasses.replace(teacher, config=config)
    assert other.cache.folder == teacher.cache.folder


def test_batches_carry_the_rows_of_their_images_and_have_the_planned_shapes(data, teacher):
    config, rows = small_config(data), cached_probabilities(teacher)
    batches = NumpyBatches(
        make_train_dataset(
            teacher.source,
            global_batch_size=8,
            seed=4,
            start_step=5,
            geometry=train_geometry(config.data),
            per_example={"teacher_probabilities": rows},
        )
    )
    with contextlib.closing(batches):
        batch = next(batches)
    expected = np.asarray(teacher.make_teacher_fn()(batch["image"]))
    np.testing.assert_allclose(batch["teacher_probabilities"], expected, rtol=0, atol=1e-7)
    planned = batch_shapes(config, teacher.source.max_classes_per_image, 8)
    for name, rows in batch.items():
        planned_rows = getattr(planned, name)
        assert (rows.shape, rows.dtype) == (planned_rows.shape, planned_rows.dtype), name


STEPS = {"num_steps": 5, "log_every_steps": 1, "checkpointing__every_steps": 3}


@pytest.fixture(scope="module")
def both_runs(data, tmp_path_factory):
    """State and metrics with the cached teacher, and with the step's own."""
    runs = []
    for cached in (True, False):
        workdir = tmp_path_factory.mktemp("run")
        config = small_config(data, **STEPS, loss__cached_teacher=cached)
        runs.append((train_and_evaluate(config, workdir), workdir))
    return runs


def arrays(state):
    return tree_rules.flatten({"trainable": state.trainable, "mu": state.opt_state[1].mu})


def test_training_is_the_same_with_the_cache(both_runs):
    (cached, cached_dir), (own, own_dir) = both_runs
    for path, expected in arrays(own).items():
        tolerance = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(arrays(cached)[path], expected, rtol=0, atol=tolerance)
    for ours, theirs in zip(read_metrics(cached_dir), read_metrics(own_dir), strict=True):
        for name in ("mask_aware_loss", "distillation_loss"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6)
    assert read_metrics(own_dir)[-1]["distillation_loss"] > 1e-5


def test_resumed_run_ends_bit_identical_with_the_cache(data, both_runs, tmp_path):
    finished, workdir = both_runs[0]
    shutil.copytree(workdir / "checkpoints/3", tmp_path / "checkpoints/3")
    state = train_and_evaluate(small_config(data, **STEPS), tmp_path)
    for path, expected in arrays(finished).items():
        np.testing.assert_array_equal(arrays(state)[path], expected, err_msg=path)


def test_run_may_go_on_with_the_teacher_of_the_step(data, both_runs, tmp_path):
    """The numbers are the same, so that the cache can be given up in between."""
    shutil.copytree(both_runs[0][1] / "checkpoints/3", tmp_path / "checkpoints/3")
    config = small_config(data, **STEPS, loss__cached_teacher=False)
    assert int(train_and_evaluate(config, tmp_path).step) == 5
