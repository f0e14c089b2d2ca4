"""A panoptic or an instance result in words and numbers."""

import numpy as np

from maft_jax.inference.object_overlay import object_colors, uppermost_segments
from maft_jax.inference.segment_masks import ObjectResult, run_lengths_of, segments_of
from maft_jax.inference.segments import PanopticSegmentation


def describe_objects(result: ObjectResult) -> dict:
    """Segments or instances: scores, areas, boxes, COCO's run lengths, the overlay's colours.

    Segments are in the order of their ids, which the panoptic PNG has, instances by score.
    """
    is_panoptic = isinstance(result, PanopticSegmentation)
    rows = []
    for segment, runs, color in zip(
        segments_of(result), run_lengths_of(result), object_colors(result), strict=True
    ):
        rows.append(
            {
                "id": segment.id,
                "name": segment.class_name,
                "index": segment.class_index,
                "thing": segment.is_thing,
                "score": round(segment.score, 4),
                "pixels": segment.num_pixels,
                "share": round(segment.num_pixels / result.image[..., 0].size, 6),
                "box": list(segment.box),
                "color": "#{:02x}{:02x}{:02x}".format(*color),
                "segmentation": runs,
            }
        )
    empty = uppermost_segments(result) < 0
    rest = {"pixels": int(empty.sum()), "share": round(float(np.mean(empty)), 6)}
    about = {"class_names": list(result.class_names)}
    if not is_panoptic:
        return {"task": "instance", "instances": rows, "no_instance": rest, **about}
    about["things"] = [result.class_names[index] for index in sorted(result.things)]
    note = "an id is red + 256 green + 65536 blue; 0 is no segment"
    panoptic = {"task": "panoptic", "segments": rows, "no_segment": rest}
    return {**panoptic, "segment_map": {"note": note}, **about}
