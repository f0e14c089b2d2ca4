"""The mask of each object of a panoptic or an instance result."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from input_pipeline.run_lengths import decode_segmentation, encode_mask
from maft_jax.inference.segments import InstanceSegmentation, PanopticSegmentation, Segment

ObjectResult = PanopticSegmentation | InstanceSegmentation


def segments_of(result: ObjectResult) -> tuple[Segment, ...]:
    """Segments in the order of their ids, or instances, highest score first."""
    return result.segments if isinstance(result, PanopticSegmentation) else result.instances


def masks_of(result: ObjectResult) -> Iterator[Bool[np.ndarray, "h w"]]:
    """The mask of each of `segments_of`, one at a time."""
    if isinstance(result, PanopticSegmentation):
        return (result.segment_map == segment.id for segment in result.segments)
    return (decode_segmentation(runs, result.image.shape[:2]) for runs in result.run_lengths)


def run_lengths_of(result: ObjectResult) -> tuple[dict, ...]:
    """The mask of each of `segments_of` as COCO's {"size": [h, w], "counts": string}."""
    if isinstance(result, InstanceSegmentation):
        return result.run_lengths
    return tuple(encode_mask(mask) for mask in masks_of(result))
