"""Objects of one image in a call: `maft_jax.segment_panoptic` and `maft_jax.segment_instances`."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from maft_jax.inference.clip import Clip
from maft_jax.inference.segment_rules import SegmentRules
from maft_jax.inference.segmentation import ImageLike, ImageSegmenter
from maft_jax.inference.segments import InstanceSegmentation, PanopticSegmentation
from maft_jax.proposals.generator import ProposalGenerator


def segment_panoptic(
    clip: Clip,
    image: ImageLike,
    classes: str | Sequence[str],
    proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
    *,
    things: Iterable[str | int] | None = None,
    rules: str | SegmentRules = "maft_plus",
    **options: Any,
) -> PanopticSegmentation:
    """Gives every pixel to one object, to one class without objects, or to none.

    Args:
        clip, image, classes, proposals: as of `maft_jax.segment`.
        things: names or indices of the classes with countable objects; None: all.
        rules: thresholds that make segments of masks: fcclip, maft_plus, mask2former, or
            `segment_rules.SegmentRules`.
        options: background, synonyms, templates, num_proposals, scales and flip of
            `maft_jax.segment`.

    Raises:
        ValueError: as `maft_jax.segment`, or a thing is no class, or there are no such rules.
    """
    segmenter = ImageSegmenter(clip, classes, **options)
    return segmenter.panoptic(image, proposals, things=things, rules=rules)


def segment_instances(
    clip: Clip,
    image: ImageLike,
    classes: str | Sequence[str],
    proposals: ProposalGenerator | np.ndarray | jax.Array | None = None,
    *,
    things: Iterable[str | int] | None = None,
    rules: str | SegmentRules = "maft_plus",
    **options: Any,
) -> InstanceSegmentation:
    """The objects of an image, which may overlap, highest score first.

    Args and errors: as of `segment_panoptic`.
    """
    segmenter = ImageSegmenter(clip, classes, **options)
    return segmenter.instances(image, proposals, things=things, rules=rules)
