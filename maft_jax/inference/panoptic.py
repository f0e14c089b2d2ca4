"""From class probabilities and masks to a panoptic result: every pixel one segment, or none.

Mask2Former's rules. A proposal is of its best class, and takes part if that is one of the classes
and its probability exceeds a threshold; void is what a row of probabilities lacks to 1, and columns
behind the classes (background names). Each pixel goes to the proposal whose probability times mask
is highest there. Proposals that keep too little of their masks are dropped, and their pixels are
void; others keep their pixels inside of their masks, and those of one class without objects join.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, UInt8
from scipy.ndimage import find_objects

from maft_jax.inference.images_on_devices import map_images, same_row
from maft_jax.inference.row_strips import row_strips
from maft_jax.inference.segment_rules import SegmentRules
from maft_jax.inference.segments import VOID, PanopticSegmentation, Segment
from maft_jax.models.mask_pixels import NOBODY, PixelOwners, PlacedMasks, own_pixels

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class OwnedPixels:
    """What is known of one image when its pixels are given to proposals; on the host."""

    classes: Int32[np.ndarray, " n"]
    """NO_CLASS: the proposal took no part."""
    scores: Float32[np.ndarray, " n"]
    owner: Int32[np.ndarray, "h w"]
    """Proposals, or NOBODY."""
    owned: Int32[np.ndarray, " n"]
    inside: Int32[np.ndarray, " n"]
    both: Int32[np.ndarray, " n"]
    """As of `mask_pixels.PixelOwners`."""


def segment_image(
    image: UInt8[np.ndarray, "h w 3"],
    probabilities: Float[Array, "1 n c"],
    masks: PlacedMasks,
    class_names: Sequence[str],
    things: frozenset[int],
    rules: SegmentRules,
) -> PanopticSegmentation:
    """The panoptic result of one image, strip by strip.

    Args:
        probabilities: of the classes, then of what is none of them.
        masks: of a batch of this image alone.
        things: indices of the classes with countable objects.
    """
    size = image.shape[:2]
    owner, counts = np.empty(size, np.int32), 0
    for rows, array in row_strips(size):
        classes, scores, found = own_batch(
            probabilities, masks, len(class_names), rules, array, first_row=rows.start
        )
        owner[rows] = np.asarray(found.owner)[0, : rows.stop - rows.start, : size[1]]
        counts = counts + np.stack([found.owned[0], found.inside[0], found.both[0]])
    owned = OwnedPixels(np.asarray(classes)[0], np.asarray(scores)[0], owner, *counts)
    segment_map, segments = merge_segments(owned, class_names, things, rules)
    return PanopticSegmentation(image, tuple(class_names), things, segment_map, segments)


def own_batch(
    probabilities: Float[Array, "b n c"],
    masks: PlacedMasks,
    num_classes: int,
    rules: SegmentRules,
    size: tuple[int, int],
    *,
    first_row: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Int32[Array, "b n"], Float[Array, "b n"], PixelOwners]:
    """Classes of proposals, or NO_CLASS; their probabilities; and the owners of pixels.

    Args:
        size: height and width of the arrays of owners, which begin at `first_row`.
        mesh: over whose devices the images lie.
    """
    first_rows = same_row(first_row, len(probabilities), mesh)
    threshold = jnp.float32(rules.object_threshold)
    return _own(mesh, num_classes, size, threshold, probabilities, masks, first_rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _own(mesh, num_classes, size, threshold, probabilities, masks, first_rows):
    scores = jnp.max(probabilities, axis=-1)
    classes = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    missing = 1 - jnp.sum(probabilities, axis=-1)
    is_object = (classes < num_classes) & (scores >= missing) & (scores > threshold)
    owners = map_images(
        mesh,
        lambda *arrays: own_pixels(*arrays, out_size=size),
        jnp.where(is_object, scores, 0.0),
        masks,
        first_rows,
    )
    return jnp.where(is_object, classes, NO_CLASS), scores, owners


def merge_segments(
    found: OwnedPixels, class_names: Sequence[str], things: frozenset[int], rules: SegmentRules
) -> tuple[Int32[np.ndarray, "h w"], tuple[Segment, ...]]:
    """The map of segments' ids, which count from 1 in the order of proposals, and the segments.

    The score of joined proposals is the highest of theirs.
    """
    ids = np.full(len(found.classes), VOID, np.int32)
    of_stuff: dict[int, int] = {}
    classes, scores = [], []
    for proposal in np.flatnonzero((found.classes != NO_CLASS) & (found.both > 0)):
        index, score = int(found.classes[proposal]), float(found.scores[proposal])
        if int(found.owned[proposal]) / int(found.inside[proposal]) < rules.overlap_threshold:
            continue
        if index in of_stuff:
            ids[proposal] = of_stuff[index]
            scores[of_stuff[index] - 1] = max(score, scores[of_stuff[index] - 1])
            continue
        classes.append(index)
        scores.append(score)
        ids[proposal] = len(classes)
        if index not in things:
            of_stuff[index] = len(classes)
    segment_map = np.where(found.owner == NOBODY, np.int32(VOID), ids[found.owner])
    return segment_map, segments_of_map(segment_map, classes, scores, class_names, things)


def segments_of_map(
    segment_map: Int32[np.ndarray, "h w"],
    classes: Sequence[int],
    scores: Sequence[float],
    class_names: Sequence[str],
    things: frozenset[int],
) -> tuple[Segment, ...]:
    """The segments of a map whose ids count from 1, each of which is there."""
    pixels = np.bincount(segment_map.ravel(), minlength=len(classes) + 1)
    boxes = find_objects(segment_map, max_label=len(classes))
    return tuple(
        Segment(
            id=number,
            class_index=index,
            class_name=class_names[index],
            is_thing=index in things,
            score=min(score, 1.0),
            num_pixels=int(pixels[number]),
            box=(
                columns.start,
                rows.start,
                columns.stop - columns.start,
                rows.stop - rows.start,
            ),
        )
        for number, (index, score, (rows, columns)) in enumerate(
            zip(classes, scores, boxes, strict=True), start=1
        )
    )
