"""AP and AR against pycocotools on drawn scenes."""

import dataclasses

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input_pipeline.run_lengths import encode_mask
from maft_jax.evaluators.average_precision import (
    InstanceMatches,
    PredictedInstance,
    TrueInstance,
    class_average_precision,
    instance_metrics,
    match_instances,
)

SIZE = (130, 140)


def drawn_scene(rng, num_classes, most):
    """Objects, crowds and predictions of an image, of all sizes; sometimes there are none."""
    classes = rng.integers(0, num_classes, 3)
    truth, predicted = [], []
    for _ in range(rng.integers(0, 7)):
        mask, index = drawn_mask(rng), int(rng.choice(classes))
        area = float(mask.sum()) * (1 if rng.random() < 0.7 else rng.uniform(0.8, 1.2))
        truth.append(TrueInstance(index, encode_mask(mask), area, bool(rng.random() < 0.25)))
        while rng.random() < 0.6:  # near it
            near = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
            wrong = rng.random() < 0.15
            predicted.append((int(rng.choice(classes)) if wrong else index, near))
    predicted += [(int(rng.choice(classes)), drawn_mask(rng)) for _ in range(rng.integers(0, most))]
    order = rng.permutation(len(predicted))
    scores = np.round(rng.random(len(predicted)), 1 if rng.random() < 0.5 else 3)  # with ties
    return [
        PredictedInstance(predicted[i][0], float(scores[i]), encode_mask(predicted[i][1]))
        for i in order
    ], truth


def drawn_mask(rng) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    y, x = rng.integers(0, 110, 2)
    h, w = (int(side) for side in rng.choice([5, 20, 40, 120], 2) * rng.uniform(0.7, 1, 2))
    mask[y : y + h, x : x + w] = True
    return mask


def of_pycocotools(scenes, num_classes) -> COCOeval:
    truth, predictions = [], []
    for image, (predicted, objects) in enumerate(scenes, start=1):
        truth += [
            {
                "id": len(truth) + 1 + i,
                "image_id": image,
                "category_id": one.class_index + 1,
                "segmentation": one.run_lengths,
                "area": one.area,
                "iscrowd": int(one.is_crowd),
            }
            for i, one in enumerate(objects)
        ]
        predictions += [
            {
                "image_id": image,
                "category_id": one.class_index + 1,
                "segmentation": one.run_lengths,
                "score": one.score,
            }
            for one in predicted
        ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(scenes))],
        "annotations": truth,
        "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
    }
    coco.createIndex()
    judged = COCOeval(coco, coco.loadRes(predictions), "segm")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return judged


@pytest.mark.parametrize(
    ("num_classes", "num_scenes", "most"), [(5, 100, 6), (1, 60, 6), (847, 40, 6), (1, 3, 300)]
)
def test_numbers_are_those_of_pycocotools(num_classes, num_scenes, most, capsys):
    rng = np.random.default_rng(num_scenes)
    scenes = [drawn_scene(rng, num_classes, most) for _ in range(num_scenes)]
    theirs = of_pycocotools(scenes, num_classes)
    parts = [match_instances(i, *scene, num_classes) for i, scene in enumerate(scenes)]
    rng.shuffle(parts)  # as several hosts might add them
    matches = InstanceMatches.nothing(num_classes)
    for part in parts:
        matches = matches + part
    ours = dataclasses.astuple(instance_metrics(matches))
    assert theirs.stats[0] > (0.02 if most < 100 else 0)
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), theirs.stats, rtol=0, atol=1e-12)
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    of_classes = np.where(precision[0, 0] < 0, np.nan, precision.mean(axis=(0, 1)))
    np.testing.assert_allclose(class_average_precision(matches), of_classes, rtol=0, atol=1e-12)


def test_of_some_classes_alone_and_of_none():
    mask = np.zeros((20, 20), bool)
    mask[2:9, 3:8] = True
    encoded = encode_mask(mask)
    found = [PredictedInstance(0, 0.5, encoded), PredictedInstance(1, 0.5, encode_mask(~mask))]
    there = [TrueInstance(0, encoded, 35.0), TrueInstance(1, encoded, 35.0)]
    matches = match_instances(0, found, there, 3)
    assert instance_metrics(matches).ap == pytest.approx(0.5)
    assert instance_metrics(matches, [0]).ap == pytest.approx(1)
    assert np.isnan(instance_metrics(matches, [2]).ap)
    assert np.isnan(instance_metrics(matches).ap_large)


def test_masks_of_different_sizes_are_refused():
    small, large = encode_mask(np.ones((3, 3), bool)), encode_mask(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="masks of one size"):
        match_instances(0, [PredictedInstance(0, 1.0, small)], [TrueInstance(0, large, 16.0)], 1)
