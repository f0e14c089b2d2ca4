"""Results in the form of transformers' post-processing."""

import numpy as np

from maft_jax.inference.segment_masks import ObjectResult, masks_of, segments_of
from maft_jax.inference.segments import PanopticSegmentation


def transformers_segments(result: ObjectResult) -> dict:
    """{"segmentation", "segments_info"} as transformers' image processors return them of an image.

    Of a panoptic result as `post_process_panoptic_segmentation` does: int32 [h, w] of ids, 0 where
    no segment is. Of instances as `post_process_instance_segmentation` does with
    return_binary_maps=True: int32 [n, h, w] of 0 and 1, whose ids are places. Arrays are NumPy's;
    torch.from_numpy makes transformers' tensors of them.
    """
    is_panoptic = isinstance(result, PanopticSegmentation)
    information = [
        {
            "id": segment.id if is_panoptic else place,
            "label_id": segment.class_index,
            "was_fused": not segment.is_thing,
            "score": round(segment.score, 6),
        }
        for place, segment in enumerate(segments_of(result))
    ]
    if is_panoptic:
        return {"segmentation": result.segment_map, "segments_info": information}
    masks = np.empty((len(information), *result.image.shape[:2]), np.int32)
    for place, mask in enumerate(masks_of(result)):
        masks[place] = mask
    return {"segmentation": masks, "segments_info": information}
