"""Results as polygons of GeoJSON, in pixels of the image."""

from maft_jax.inference.interchange.outlines import mask_polygons
from maft_jax.inference.segment_masks import ObjectResult, masks_of, segments_of


def geojson_features(result: ObjectResult) -> dict:
    """A FeatureCollection (RFC 7946) with a MultiPolygon for each object or stuff.

    Coordinates are x to the right and y downwards, in pixels from the image's upper left corner.
    Outlines run between pixels: their area is the number of the mask's pixels, whose centres are
    those that they enclose. An object without pixels has no geometry.
    """
    features = []
    for segment, mask in zip(segments_of(result), masks_of(result), strict=True):
        polygons = mask_polygons(mask)
        features.append(
            {
                "type": "Feature",
                "id": segment.id,
                "geometry": {"type": "MultiPolygon", "coordinates": polygons} if polygons else None,
                "properties": {
                    "class": segment.class_name,
                    "class_index": segment.class_index,
                    "is_thing": segment.is_thing,
                    "score": segment.score,
                    "area": segment.num_pixels,
                    "box": list(segment.box),
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}
