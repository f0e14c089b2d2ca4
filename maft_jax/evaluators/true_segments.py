"""The segments that are there, of a label map and the numbers of its instances."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

from input_pipeline.examples import IGNORE
from input_pipeline.run_lengths import encode_mask
from maft_jax.evaluators.average_precision import TrueInstance
from maft_jax.evaluators.panoptic_quality import LabelledSegments


def true_segments(
    label_map: Int32[np.ndarray, "h w"],
    instances: Int32[np.ndarray, "h w"],
    things: Iterable[int],
) -> LabelledSegments:
    """One segment for each instance of a thing and for each class of stuff.

    What is of a thing's class and no instance is a crowd, one of each class; what is unlabelled is
    void.

    Args:
        instances: numbers from 1, 0 where there is none.
        things: ids of the classes with countable objects.
    """
    labelled = label_map != IGNORE
    number_of = np.where(np.isin(label_map, sorted(things)), instances, 0)
    pairs = np.stack([label_map[labelled], number_of[labelled]], axis=1)
    found, places = np.unique(pairs, axis=0, return_inverse=True)
    id_map = np.zeros(label_map.shape, np.int64)
    id_map[labelled] = places.ravel() + 1
    is_thing = np.isin(found[:, 0], sorted(things))
    return LabelledSegments(
        id_map,
        list(range(1, len(found) + 1)),
        found[:, 0].tolist(),
        (is_thing & (found[:, 1] == 0)).tolist(),
    )


def true_instances(segments: LabelledSegments, things: Iterable[int]) -> list[TrueInstance]:
    """The things among them, crowds too, whose areas are their pixels."""
    things = frozenset(things)
    crowds = segments.crowds or [False] * len(segments.ids)
    return [
        TrueInstance(index, encode_mask(mask), float(mask.sum()), is_crowd)
        for number, index, is_crowd in zip(segments.ids, segments.classes, crowds, strict=True)
        if index in things
        for mask in [segments.id_map == number]
    ]
