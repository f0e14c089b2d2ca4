"""What is measured of a source: IoU against a rendition with torch, and which proposals count."""

import functools
import json

import numpy as np
import pytest
import torch

from input_pipeline.eval_pipeline import EvalGeometry, make_eval_dataset
from input_pipeline.examples import PreparedExample
from input_pipeline.numpy_dataset import NumpyBatches
from maft_jax.diagnosis.collection import (
    crops_of_false_positives,
    measure,
    shares_of_classes,
)
from maft_jax.diagnosis.report import summarise
from maft_jax.diagnosis.statistics import top_false_positives

SIZE, NUM_CLASSES = (24, 32), 11


class Source:
    """Two images of random blocks of eleven classes, one unlabelled; masks at a quarter."""

    class_names = tuple(f"class {i}" for i in range(NUM_CLASSES))
    example_ids = ("blocks", "more", "unlabelled")
    fingerprint = "three"
    num_proposals = 5
    max_classes_per_image = NUM_CLASSES
    image_sizes = np.array([SIZE] * 3, np.int32)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        labels = rng.integers(-1, NUM_CLASSES, (6, 8)).repeat(4, axis=0).repeat(4, axis=1)
        if index == 2:
            labels = np.full_like(labels, -1)
        masks = rng.integers(0, 256, (5 - index, 6, 8)) * rng.integers(0, 2, (5 - index, 6, 8))
        return PreparedExample(
            self.example_ids[index],
            rng.integers(0, 256, (*SIZE, 3), np.uint8),
            labels.astype(np.int32),
            masks.astype(np.uint8),
            np.linspace(1, 0, 5 - index, dtype=np.float32),
        )


def expected_iou(example, classes):
    """Soft IoU of masks upsampled to the label map, as torch upsamples with align_corners."""
    masks = torch.from_numpy(example.proposals).double()[None] / 255
    masks = torch.nn.functional.interpolate(masks, SIZE, mode="bilinear", align_corners=True)[0]
    truth = torch.from_numpy(example.label_map == np.reshape(classes, (-1, 1, 1))).double()
    both = torch.einsum("ghw,nhw->gn", truth, masks)
    union = truth.sum((1, 2))[:, None] + masks.sum((1, 2)) - both
    return (both / (union + 1e-7)).numpy()


def random_column(seed, batch, leave_out=()):
    """Probabilities that depend on the example alone, zeros for proposals to be left out."""
    found = np.zeros((len(batch["image"]), 5, NUM_CLASSES), np.float32)
    for row, index in enumerate(batch["example_index"]):
        rng = np.random.default_rng([seed, max(index, 0)])
        found[row] = rng.dirichlet(np.full(NUM_CLASSES, 0.2), 5)
    found[:, list(leave_out)] = 0
    return found


def run(batch_size=2, **columns):
    columns = columns or {"frozen": functools.partial(random_column, 0)}
    batches = NumpyBatches(
        make_eval_dataset(
            Source(), global_batch_size=batch_size, geometry=EvalGeometry(24), num_workers=1
        )
    )
    return measure(Source(), "blocks", columns, batches)


@pytest.fixture(scope="module")
def measured():
    return run(
        frozen=functools.partial(random_column, 0), tuned=functools.partial(random_column, 1)
    )


@pytest.mark.parametrize("index", [0, 1])
def test_iou_is_that_of_masks_upsampled_to_the_label_map(measured, index):
    truth, example = measured.truths[index], Source()[index]
    present = np.setdiff1d(example.label_map, [-1])
    assert len(present) > 8  # more than are computed at a time
    np.testing.assert_array_equal(truth.present_classes, present)
    iou = expected_iou(example, present)
    np.testing.assert_allclose(truth.iou, iou, atol=1e-6)
    low, high = iou.min(1, keepdims=True), iou.max(1, keepdims=True)
    np.testing.assert_allclose(truth.normalised_iou, (iou - low) / (high - low), atol=2e-5)


def test_shares_are_weighted_by_the_mask():
    labels = np.array([[0, 0, 3, 3], [0, 0, -1, -1]])
    masks = np.zeros((3, 2, 4), np.uint8)
    masks[0] = 255
    masks[1, 0, 1:3] = [50, 150]
    expected = [[0.5, 0.25, 0], [0.25, 0.75, 0], [0, 0, 0]]
    found = shares_of_classes(masks, labels, np.array([0, 3, 4]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_that_are_the_iou_correlate_perfectly():
    def ideal(batch):
        found = np.zeros((1, 5, NUM_CLASSES), np.float32)
        example = Source()[int(batch["example_index"][0])]
        present = np.setdiff1d(example.label_map, [-1])
        if len(present):
            found[0, : len(example.proposals), present] = expected_iou(example, present)
        found[0, : len(example.proposals), 0] += 1e-9  # so that none counts as left out
        return found

    numbers = summarise(run(1, ideal=ideal), 3)["columns"]["ideal"]["score_against_iou"]
    assert numbers["pearson"] == pytest.approx(1, abs=1e-5)
    assert numbers["spearman"] > 0.999
    assert numbers["mean_row_spearman"] > 0.999


def test_equal_weights_give_equal_columns():
    column = functools.partial(random_column, 0)
    columns = summarise(run(frozen=column, tuned=column), 3)["columns"]
    assert columns["frozen"] == columns["tuned"]


def test_constant_scores_give_null(measured):
    def constant(batch):
        return np.full((len(batch["image"]), 5, NUM_CLASSES), 1 / NUM_CLASSES, np.float32)

    numbers = summarise(run(constant=constant), 3)["columns"]["constant"]
    assert numbers["score_against_iou"]["pearson"] is None
    assert all(row["spearman"] is None for row in numbers["classes"])
    assert numbers["similarity"]["mean_cosine"] == pytest.approx(1)
    assert numbers["similarity"]["mean_entropy"] == pytest.approx(1)
    json.dumps(numbers, allow_nan=False)


def test_batch_size_does_not_matter(measured):
    columns = {seed: functools.partial(random_column, i) for i, seed in enumerate(measured.scores)}
    assert summarise(run(1, **columns), 3) == summarise(measured, 3)


def test_what_one_column_leaves_out_counts_for_none():
    whole = functools.partial(random_column, 0)
    found = run(frozen=whole, tuned=functools.partial(random_column, 1, leave_out=[1]))
    np.testing.assert_array_equal(found.truths[0].proposals, [0, 2, 3, 4])
    assert [len(one.predicted) for one in found.scores["frozen"]] == [4, 3, 2]
    assert found.truths[0].iou.shape[1] == 4
    np.testing.assert_allclose(
        found.truths[0].iou, run(frozen=whole).truths[0].iou[:, [0, 2, 3, 4]], atol=1e-6
    )


def test_numbers_say_how_much_there_was(measured):
    numbers = summarise(measured, 1)
    assert (numbers["num_images"], numbers["num_proposals"]) == (3, 5 + 4 + 3)
    assert numbers["num_triples"] == sum(truth.iou.size for truth in measured.truths)
    images = numbers["columns"]["frozen"]["similarity"]["images"]
    assert [image["example_id"] for image in images] == list(Source.example_ids)
    classes = numbers["columns"]["tuned"]["classes"]
    assert [row["num_images"] for row in classes] == sorted(
        [row["num_images"] for row in classes], reverse=True
    )
    json.dumps(numbers, allow_nan=False)


def test_every_false_positive_has_a_picture(measured):
    crops = crops_of_false_positives(Source(), measured, 2)
    for title, scores in measured.scores.items():
        found = top_false_positives(measured.truths, scores, 2)
        assert [one for one, _ in crops[title]] == found
        assert all(crop.shape == (240, 240, 3) for _, crop in crops[title])


def test_truth_of_an_unlabelled_image_is_empty(measured):
    truth = measured.truths[2]
    assert truth.iou.shape == (0, 3) and truth.shares.shape == (3, 0)
