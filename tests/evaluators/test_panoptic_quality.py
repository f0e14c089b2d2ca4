"""PQ against panopticapi's numbers, and against its rules pixel by pixel on drawn scenes."""

import numpy as np
import pytest

from maft_jax.evaluators.panoptic_quality import (
    IOU_UNITS,
    LabelledSegments,
    PanopticTotal,
    checked_panoptic_counts,
    count_segments,
    panoptic_metrics,
)
from tests.evaluators.results_read_back import slow_counts
from tests.golden_files import golden


def golden_counts(image: int) -> np.ndarray:
    arrays = golden("segments/panoptic_quality")
    order = {int(number): i for i, number in enumerate(arrays["categories"][:, 0])}
    sides = []
    for side in ("gt", "pred"):
        rows = arrays[f"{side}_segments_{image}"].tolist()
        ids = arrays[f"{side}_ids_{image}"].astype(np.int64)
        crowds = [bool(row[2]) for row in rows] if side == "gt" else None
        classes = [order[row[1]] for row in rows]
        sides.append(LabelledSegments(ids, [row[0] for row in rows], classes, crowds))
    truth, predicted = sides
    return count_segments(predicted, truth, len(order))


def test_counts_and_quality_are_those_of_panopticapi_and_add_up():
    arrays = golden("segments/panoptic_quality")
    things = np.flatnonzero(arrays["categories"][:, 1]).tolist()
    total = PanopticTotal(len(arrays["categories"]))
    for image in range(int(arrays["num_images"])):
        counts = golden_counts(image)
        check_golden(counts, things, f"pq_image_{image}")
        total.add(counts)
    check_golden(total.counts, things, "pq")


def check_golden(counts, things, key) -> None:
    arrays = golden("segments/panoptic_quality")
    np.testing.assert_array_equal(counts[:, :3], arrays[f"{key}/per_class_counts"])
    sums = arrays[f"{key}/per_class_iou_sum"]
    np.testing.assert_allclose(counts[:, 3] / IOU_UNITS, sums, rtol=0, atol=1e-12)
    found = panoptic_metrics(counts, things)
    of_classes = np.nan_to_num(np.stack([found.class_pq, found.class_sq, found.class_rq], axis=1))
    np.testing.assert_allclose(of_classes, arrays[f"{key}/per_class_pq_sq_rq"], atol=1e-12)
    for name, part in (("all", found.every), ("things", found.things), ("stuff", found.stuff)):
        ours = (part.pq, part.sq, part.rq, part.num_classes)
        np.testing.assert_allclose(ours, arrays[f"{key}/{name}"], atol=1e-12)


def drawn_scene(rng, num_classes):
    """True and predicted segments of an image, with void, crowds, and sometimes nothing."""
    shape = (24, 30)
    sides = []
    base = np.zeros(shape, np.int64)
    for is_truth in (True, False):
        ids = base.copy() if rng.random() < 0.8 else np.zeros(shape, np.int64)
        for _ in range(rng.integers(0, 9)):
            y, x = rng.integers(0, 20, 2)
            h, w = rng.integers(1, 16, 2)
            ids[y : y + h, x : x + w] = rng.integers(0, 2**24) * (rng.random() < 0.85)
        if is_truth:
            base = ids
        numbers = np.unique(ids[ids > 0])
        rng.shuffle(numbers)
        few = min(num_classes, 4)
        classes = (rng.integers(0, few, len(numbers)) * (num_classes // few)).tolist()
        crowds = (rng.random(len(numbers)) < 0.3).tolist()
        sides.append((ids, numbers.tolist(), classes, crowds))
    (ids, numbers, classes, crowds), (found, found_numbers, found_classes, _) = sides
    known = dict(zip(numbers, classes, strict=True))
    found_classes = [
        known[number] if number in known and rng.random() < 0.8 else index
        for number, index in zip(found_numbers, found_classes, strict=True)
    ]
    truth = LabelledSegments(ids, numbers, classes, crowds)
    return LabelledSegments(found, found_numbers, found_classes), truth


@pytest.mark.parametrize(("num_classes", "num_scenes"), [(6, 120), (1, 40), (847, 40)])
def test_counts_are_those_of_the_rules_on_drawn_scenes(num_classes, num_scenes):
    rng = np.random.default_rng(num_classes)
    total, expected = PanopticTotal(num_classes), np.zeros((4, num_classes))
    scenes = [drawn_scene(rng, num_classes) for _ in range(num_scenes)]
    for predicted, truth in scenes:
        total.add(count_segments(predicted, truth, num_classes))
        expected += slow_counts(predicted, truth, num_classes)
    np.testing.assert_array_equal(total.counts[:, :3].T, expected[:3])
    np.testing.assert_allclose(total.counts[:, 3] / IOU_UNITS, expected[3], atol=1e-10)
    assert (expected[:3].sum(axis=1) > 10).all(), "the scenes have all kinds"
    reversed_total = sum(count_segments(*scene, num_classes) for scene in reversed(scenes))
    np.testing.assert_array_equal(reversed_total, total.counts)


def test_seen_and_unseen_classes_and_what_nothing_shows():
    counts = np.array([[1, 0, 0, IOU_UNITS], [0, 1, 1, 0], [0, 0, 0, 0]])
    found = panoptic_metrics(counts, things=[0], unseen=[1])
    assert (found.seen.pq, found.unseen.pq, found.every.pq) == (1, 0, 0.5)
    assert np.isnan(found.class_pq[2]) and found.every.num_classes == 2
    assert np.isnan(panoptic_metrics(counts, things=[2]).things.pq)
    assert np.isnan(panoptic_metrics(counts, things=[0]).seen.pq)


@pytest.mark.parametrize("counts", [np.zeros((2, 4), np.int64), [[1, 0, 0, 0]], [[0, 0, 0, 1]]])
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="here: expected"):
        checked_panoptic_counts(np.array(counts), 1, "here")


def test_maps_and_segments_must_agree():
    ids = np.array([[0, 5], [5, 7]])
    with pytest.raises(ValueError, match=r"without pixels are \[6\], without a segment \[7\]"):
        LabelledSegments(ids, [5, 6], [0, 0])
    with pytest.raises(ValueError, match="unique"):
        LabelledSegments(ids, [5, 7, 7], [0, 0, 0])
    with pytest.raises(ValueError, match="of one size"):
        small, large = LabelledSegments(ids, [5, 7], [0, 0]), LabelledSegments(ids[:1], [5], [0])
        count_segments(small, large, 1)
