"""Counts are exact integers, whoever counts them and however the pixels are spread."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics

from input_pipeline.examples import IGNORE
from maft_jax.config.sections import MeshConfig
from maft_jax.evaluators.confusion import ConfusionTotal, confusion_matrix
from maft_jax.runtime import sharding
from tests.evaluators.label_maps import confusion_of, count, golden_maps, random_maps


def test_golden_counts():
    predicted, labels, expected = golden_maps()
    np.testing.assert_array_equal(count(predicted, labels, 8)[:, :-1], expected[:, :-1])
    ignored = count(predicted, labels, 8)[:, -1]
    np.testing.assert_array_equal(ignored, np.bincount(predicted[labels < 0], minlength=9))


@pytest.mark.parametrize("num_classes", [4, 20, 171, 847])
def test_counts_of_sklearn_and_torchmetrics(num_classes):
    predicted, labels = random_maps(num_classes, seed=num_classes)
    counted = confusion_of(predicted, labels, num_classes)
    ids = [*range(num_classes), IGNORE]
    # Both have the labels as rows.
    expected = sklearn.metrics.confusion_matrix(labels.ravel(), predicted.ravel(), labels=ids)
    np.testing.assert_array_equal(counted.T, expected)
    metric = torchmetrics.classification.MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE)
    expected = metric(torch.from_numpy(predicted), torch.from_numpy(labels))
    np.testing.assert_array_equal(counted[:-1, :-1].T, expected)


def test_every_cell_by_hand():
    predicted = jnp.array([[[0, 1, -1], [1, 1, -1]]])
    labels = jnp.array([[[0, 0, 0], [1, -1, -1]]])
    expected = [[1, 0, 0], [1, 1, 1], [1, 0, 1]]
    np.testing.assert_array_equal(confusion_matrix(predicted, labels, 2), expected)


@pytest.mark.parametrize("stranger", [-2, -3, -256, 2, 3, 255, 65535, 2**31 - 1, -(2**31)])
def test_value_that_is_no_class_is_counted_nowhere_and_reported(stranger):
    good, bad = jnp.zeros((1, 2, 2), jnp.int32), jnp.array([[[0, 1], [0, stranger]]], jnp.int32)
    for pair in ((good, bad), (bad, good)):
        matrix = count(*pair, 2)
        assert matrix.sum() == 3
        assert matrix[0, 0] == 2
        with pytest.raises(ValueError, match=r"1 of 4 pixels have .* outside -1 \.\. 1"):
            ConfusionTotal(2).add(matrix, num_pixels=4)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_narrow_integers_do_not_wrap(dtype):
    predicted, labels = random_maps(100, seed=0)
    narrow = count(predicted.astype(dtype), labels.astype(dtype), 847)
    np.testing.assert_array_equal(narrow, count(predicted, labels, 847))


def test_batch_that_int32_cannot_count_is_refused_before_it_is_computed():
    maps = jax.ShapeDtypeStruct((2, 2**15, 2**15), jnp.int16)
    with pytest.raises(ValueError, match=r"at most 2,147,483,647 pixels.*got 2,147,483,648"):
        count.lower(maps, maps, 20)


def test_sharded_batch_is_added_up_without_moving_pixels():
    predicted, labels = random_maps(20, seed=1, shape=(8, 30, 20))
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2, model=1))
    placed = jax.device_put((predicted, labels), sharding.batch_sharding(mesh))
    spread = jax.jit(confusion_matrix, static_argnums=2, out_shardings=sharding.replicated(mesh))
    matrix = spread(*placed, 20)
    assert matrix.is_fully_replicated
    np.testing.assert_array_equal(matrix, count(predicted, labels, 20))
    program = spread.lower(*placed, 20).compile().as_text()
    collectives = re.findall(r"= (s32\S*) (all-\w+|collective-permute)\(", program)
    assert [name for _, name in collectives] == ["all-reduce"], collectives


def test_total_does_not_depend_on_batches_or_padding():
    predicted, labels = random_maps(20, seed=2, shape=(6, 30, 20))
    padded = [
        np.pad(maps, ((0, 2), (0, 34), (0, 44)), constant_values=IGNORE)
        for maps in (predicted, labels)
    ]
    total = ConfusionTotal(20)
    for rows in (slice(0, 4), slice(4, 8)):
        total.add(count(padded[0][rows], padded[1][rows], 20), num_pixels=4 * 64 * 64)
    np.testing.assert_array_equal(total.confusion, confusion_of(predicted, labels, 20))


def test_total_goes_beyond_what_int32_holds():
    total = ConfusionTotal(1)
    for _ in range(3):
        total.add(np.array([[2**31 - 1, 0], [0, 0]], np.int32))
    assert total.confusion[0, 0] == 3 * (2**31 - 1)


def test_interrupted_total_goes_on_from_its_saved_state(tmp_path):
    batches = [count(*random_maps(20, seed=seed), 20) for seed in range(4)]
    whole, first = ConfusionTotal(20), ConfusionTotal(20)
    for matrix in batches:
        whole.add(matrix)
    for matrix in batches[:2]:
        first.add(matrix)
    np.savez(tmp_path / "state.npz", **first.state())
    with np.load(tmp_path / "state.npz") as state:
        second = ConfusionTotal.from_state(state, 20)
    for matrix in batches[2:]:
        second.add(matrix)
    np.testing.assert_array_equal(second.confusion, whole.confusion)


def test_totals_merge():
    parts, whole = [ConfusionTotal(20), ConfusionTotal(20)], ConfusionTotal(20)
    for seed in range(4):
        matrix = count(*random_maps(20, seed=seed), 20)
        parts[seed % 2].add(matrix)
        whole.add(matrix)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].confusion, whole.confusion)


def test_counts_of_another_class_list_are_refused():
    total, other = ConfusionTotal(20), ConfusionTotal(59)
    with pytest.raises(ValueError, match=r"add: expected integer counts of 20 classes.*\(60, 60\)"):
        total.add(other.confusion)
    with pytest.raises(ValueError, match=r"merge: expected .* 20 classes"):
        total.merge(other)
    with pytest.raises(ValueError, match=r"from_state: expected .* 20 classes"):
        ConfusionTotal.from_state(other.state(), 20)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"counts": np.zeros((3, 3), int)}, "expected the array 'confusion', got .'counts'."),
        ({"confusion": np.zeros((3, 3))}, "expected integer counts.*got float64"),
        ({"confusion": np.full((3, 3), -1)}, "negative"),
    ],
)
def test_what_is_no_state_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        ConfusionTotal.from_state(state, 2)
