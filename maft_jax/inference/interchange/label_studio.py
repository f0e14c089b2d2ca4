"""A task of Label Studio whose predictions are to be corrected, with a brush stroke per object."""

from input_pipeline.label_maps.brush_run_lengths import encode_brush
from maft_jax.inference.segment_masks import ObjectResult, masks_of, segments_of


def label_studio_task(
    result: ObjectResult,
    image: str,
    *,
    from_name: str = "tag",
    to_name: str = "image",
    data_key: str = "image",
    model_version: str = "maft_jax",
) -> dict:
    """A task of Label Studio's JSON; a list of them is what its import takes.

    Args:
        image: where Label Studio finds the image: an address, or /data/local-files/?d=PATH.
        from_name, to_name: names of the BrushLabels and the Image in the labelling configuration.
        data_key: of the task's data, without the $ that the Image has.
        model_version: by what Label Studio tells predictions apart.
    """
    height, width = result.image.shape[:2]
    segments = segments_of(result)
    strokes = [
        {
            "id": f"{model_version}_{segment.id}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": segment.score,
            "value": {
                "format": "rle",
                "rle": list(encode_brush(mask)),
                "brushlabels": [segment.class_name],
            },
        }
        for segment, mask in zip(segments, masks_of(result), strict=True)
    ]
    mean_score = sum(segment.score for segment in segments) / max(1, len(segments))
    prediction = {"model_version": model_version, "score": mean_score, "result": strokes}
    return {"data": {data_key: image}, "predictions": [prediction]}
