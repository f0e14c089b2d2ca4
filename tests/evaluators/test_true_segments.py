"""What is there, of label maps with instances."""

import numpy as np

from maft_jax.evaluators.average_precision import (
    InstanceMatches,
    PredictedInstance,
    instance_metrics,
    match_instances,
)
from maft_jax.evaluators.panoptic_quality import (
    LabelledSegments,
    count_segments,
    panoptic_metrics,
)
from maft_jax.evaluators.true_segments import true_instances, true_segments
from maft_jax.inference.segments import Segment

LABELS = np.array([[0, 0, 1, 1], [0, 0, 2, -1], [0, 0, 2, -1]], np.int32)
INSTANCES = np.array([[1, 1, 7, 8], [2, 2, 0, 0], [2, 2, 3, 3]], np.int32)
"""Two things, stuff in two numbered pieces, a crowd and another thing of its class; void."""


def test_things_stuff_crowds_and_void_are_told_apart():
    found = true_segments(LABELS, INSTANCES, things=[0, 2])
    assert found.id_map.tolist() == [[1, 1, 3, 3], [2, 2, 4, 0], [2, 2, 5, 0]]
    assert found.classes == [0, 0, 1, 2, 2]
    assert found.crowds == [False, False, False, True, False]
    objects = true_instances(found, things=[0, 2])
    assert [(one.class_index, one.area, one.is_crowd) for one in objects] == [
        (0, 2.0, False),
        (0, 4.0, False),
        (2, 1.0, True),
        (2, 1.0, False),
    ]


def test_what_is_there_is_found_perfectly_by_itself():
    truth = true_segments(LABELS, INSTANCES, things=[0, 2])
    segments = tuple(
        Segment(number, index, str(index), index != 1, 1.0, 1, (0, 0, 1, 1))
        for number, index in zip(truth.ids, truth.classes, strict=True)
    )
    ids = truth.id_map.astype(np.int32)
    predicted = LabelledSegments.of(ids, segments)
    counts = count_segments(predicted, truth, 3)
    assert counts[:, :3].tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert panoptic_metrics(counts, [0, 2]).every.pq == 1
    objects = true_instances(truth, [0, 2])
    found = [PredictedInstance(one.class_index, 0.9, one.run_lengths) for one in objects]
    matches = match_instances(0, found, objects, 3) + InstanceMatches.nothing(3)
    assert instance_metrics(matches).ap > 1 - 1e-9


def test_image_without_labels_has_no_segments():
    nothing = np.full((2, 3), -1, np.int32)
    truth = true_segments(nothing, np.zeros_like(nothing), things=[0])
    assert truth.ids == [] and true_instances(truth, [0]) == []
