"""Panoptic and instance results as objects and files of other tools; docs/interchange.md."""

from maft_jax.inference.interchange.coco import (
    coco_document,
    coco_panoptic_document,
    decode_panoptic_png,
    encode_panoptic_png,
    write_coco_dataset,
    write_coco_panoptic,
)
from maft_jax.inference.interchange.geojson import geojson_features
from maft_jax.inference.interchange.label_studio import label_studio_task
from maft_jax.inference.interchange.supervision_detections import supervision_detections
from maft_jax.inference.interchange.transformers_segments import transformers_segments

__all__ = [
    "coco_document",
    "coco_panoptic_document",
    "decode_panoptic_png",
    "encode_panoptic_png",
    "geojson_features",
    "label_studio_task",
    "supervision_detections",
    "transformers_segments",
    "write_coco_dataset",
    "write_coco_panoptic",
]
