"""From class probabilities and masks to instances: objects with scores, which may overlap.

Mask2Former's rules. The best pairs of proposal and class are taken, things of these are kept: one
proposal may be several objects. What is void or background is no class here. The mask is what
exceeds 1/2, the score the class's probability times the mask's mean inside.
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from input_pipeline.run_lengths import encode_mask
from maft_jax.inference.images_on_devices import map_images, same_row
from maft_jax.inference.row_strips import row_strips
from maft_jax.inference.segment_rules import SegmentRules
from maft_jax.inference.segments import InstanceSegmentation, Segment
from maft_jax.models.array_types import Leaf
from maft_jax.models.mask_pixels import MaskInteriors, PlacedMasks, mask_interiors

_EPSILON = 1e-6
"""Pixels that are added to a mask's in its mean."""


@flax.struct.dataclass
class BestPairs:
    """Proposals with classes, the most probable first; one proposal may come several times."""

    proposals: Leaf
    """[*b, k] int32"""
    classes: Leaf
    """[*b, k] int32"""
    probabilities: Leaf
    """[*b, k] float32"""


def find_instances(
    image: UInt8[np.ndarray, "h w 3"],
    probabilities: Float[Array, "1 n c"],
    masks: PlacedMasks,
    class_names: Sequence[str],
    things: frozenset[int],
    rules: SegmentRules,
) -> InstanceSegmentation:
    """The instances of one image, strip by strip.

    Args: as of `panoptic.segment_image`.
    """
    size = image.shape[:2]
    strips, num_pixels, sums = [], 0, 0.0
    for rows, array in row_strips(size):
        pairs, found = interiors_of_batch(
            probabilities, masks, len(class_names), rules, array, first_row=rows.start
        )
        strips.append(np.asarray(found.bits)[0, : rows.stop - rows.start, : size[1]])
        num_pixels = num_pixels + np.asarray(found.num_pixels[0], np.int64)
        sums = sums + np.asarray(found.value_sum[0], np.float64)
    pairs = jax.tree.map(lambda array: np.asarray(array)[0], pairs)
    instances, run_lengths = rank_instances(
        pairs, np.concatenate(strips), num_pixels, sums, class_names, things, rules
    )
    return InstanceSegmentation(image, tuple(class_names), instances, run_lengths)


def interiors_of_batch(
    probabilities: Float[Array, "b n c"],
    masks: PlacedMasks,
    num_classes: int,
    rules: SegmentRules,
    size: tuple[int, int],
    *,
    first_row: int = 0,
    mesh: Mesh | None = None,
) -> tuple[BestPairs, MaskInteriors]:
    """The best pairs, and where the masks of each are; arguments as of `panoptic.own_batch`."""
    first_rows = same_row(first_row, len(probabilities), mesh)
    return _interiors(
        mesh, num_classes, rules.max_instances, size, probabilities, masks, first_rows
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _interiors(mesh, num_classes, most, size, probabilities, masks, first_rows):
    of_classes = probabilities[..., :num_classes].reshape(len(probabilities), -1)
    best, places = lax.top_k(of_classes, min(most, of_classes.shape[1]))
    proposals, classes = jnp.divmod(places.astype(jnp.int32), num_classes)

    def of_image(chosen, image_masks, first_row):
        chosen_masks = image_masks.replace(values=image_masks.values[chosen])
        return mask_interiors(chosen_masks, first_row, out_size=size)

    found = map_images(mesh, of_image, proposals, masks, first_rows)
    return BestPairs(proposals, classes, best), found


def rank_instances(
    pairs: BestPairs,
    bits: UInt8[np.ndarray, "h w bytes"],
    num_pixels: np.ndarray,
    sums: np.ndarray,
    class_names: Sequence[str],
    things: frozenset[int],
    rules: SegmentRules,
) -> tuple[tuple[Segment, ...], tuple[dict, ...]]:
    """Instances of one image, highest score first, and their run lengths; none without pixels.

    Args:
        bits, num_pixels, sums: of each pair's mask, as `mask_pixels.MaskInteriors` has them.
    """
    scores = np.asarray(pairs.probabilities, np.float64) * sums / (num_pixels + _EPSILON)
    is_thing = np.isin(pairs.classes, sorted(things))
    kept = is_thing & (num_pixels > 0) & (scores > rules.instance_threshold)
    order = np.argsort(-scores, kind="stable")
    masks: dict[int, tuple[dict, tuple[int, int, int, int]]] = {}
    instances, run_lengths = [], []
    for pair in order[kept[order]]:
        proposal, index = int(pairs.proposals[pair]), int(pairs.classes[pair])
        if proposal not in masks:
            mask = (bits[..., pair // 8] >> (pair % 8) & 1).astype(bool)
            masks[proposal] = encode_mask(mask), box_of(mask)
        encoded, box = masks[proposal]
        run_lengths.append(encoded)
        instances.append(
            Segment(
                id=len(run_lengths),
                class_index=index,
                class_name=class_names[index],
                is_thing=True,
                score=min(float(scores[pair]), 1.0),
                num_pixels=int(num_pixels[pair]),
                box=box,
            )
        )
    return tuple(instances), tuple(run_lengths)


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """x, y, width, height of what is inside, of which there is something."""
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    return int(left), int(top), int(right - left + 1), int(bottom - top + 1)
