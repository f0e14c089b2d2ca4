"""Results as Roboflow's supervision has them."""

from typing import Any

import numpy as np

from maft_jax.inference.segment_masks import ObjectResult, masks_of, segments_of


def supervision_detections(result: ObjectResult) -> Any:
    """supervision.Detections: boxes, masks, scores and classes of objects, and of stuff likewise.

    `class_id` is the place in the result's class_names; `data` has "class_name", and whether each
    is a "thing".

    Raises:
        ValueError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ValueError(f"supervision is not there ({error}): pip install supervision") from error
    segments = segments_of(result)
    masks = np.empty((len(segments), *result.image.shape[:2]), bool)
    for place, mask in enumerate(masks_of(result)):
        masks[place] = mask
    boxes = np.array([segment.box for segment in segments], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=np.array([segment.score for segment in segments], np.float32),
        class_id=np.array([segment.class_index for segment in segments], int),
        data={
            "class_name": np.array([segment.class_name for segment in segments], str),
            "thing": np.array([segment.is_thing for segment in segments], bool),
        },
    )
