"""What the demonstration calls the objects of a scene, and how it shows them."""

import numpy as np
import pytest

from input_pipeline.shapes_world.scenes import draw_scene
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES, OBJECTS
from maft_jax.evaluators.panoptic_quality import (
    LabelledSegments,
    count_segments,
    panoptic_metrics,
)
from maft_jax.shapes_world.panoptic_comparison import COLUMNS, draw_rows, true_objects


@pytest.mark.parametrize("number", range(12))
def test_every_object_and_every_background_is_a_segment(number):
    scene = draw_scene(7, number)
    truth = true_objects(scene)
    things = [segment for segment in truth.segments if segment.is_thing]
    assert [segment.class_index for segment in things] == [index for index, _ in scene.objects]
    stuff = {s.class_index for s in truth.segments if not s.is_thing}
    assert stuff == set(np.unique(scene.label_map[scene.label_map >= len(OBJECTS)]).tolist())
    assert (truth.segment_map > 0).all()
    for segment in truth.segments:
        mask = truth.segment_map == segment.id
        assert (scene.label_map[mask] == segment.class_index).all()
        x, y, width, height = segment.box
        assert mask.sum() == mask[y : y + height, x : x + width].sum() == segment.num_pixels
    counted = LabelledSegments.of(truth.segment_map, truth.segments)
    counts = count_segments(counted, counted, len(CLASS_NAMES))
    assert panoptic_metrics(counts, range(len(OBJECTS))).every.pq == 1


@pytest.mark.parametrize("number", [0, 1, 32])
def test_two_objects_of_one_class_stay_apart(number):
    scene = draw_scene(0, number)
    assert len({index for index, _ in scene.objects}) < len(scene.objects)
    assert set(np.unique(scene.instance_map)) >= set(range(1, len(scene.objects) + 1))


def test_rows_have_a_picture_for_each_column():
    scene = draw_scene(3, 0)
    truth = true_objects(scene)
    one = draw_rows([[scene.image, truth, truth, truth]])
    two = draw_rows([[scene.image, truth, truth, truth]] * 2)
    assert one.shape[1] == two.shape[1] == len(COLUMNS) * 300 + (len(COLUMNS) - 1) * 4
    assert len(two) - len(one) == 304
