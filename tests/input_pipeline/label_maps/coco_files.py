"""Folders of images with COCO's JSON, as tests write them."""

import json

from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
]


def image_row(number, file_name, width=12, height=8):
    return {"id": number, "file_name": file_name, "width": width, "height": height}


def annotation(number, image_id, category_id, segmentation, **more):
    row = {"id": number, "image_id": image_id, "category_id": category_id}
    return row | {"segmentation": segmentation, "iscrowd": 0} | more


def box(x0, y0, x1, y1):
    """A rectangle as a list of one polygon."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def write_coco(root, names, rows, annotations, categories=CATEGORIES, size=(12, 8), at=None):
    """CVAT's "COCO 1.0": images/ and annotations/instances_default.json; returns the root."""
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 150)).save(path)
    path = root / (at or "annotations/instances_default.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": rows, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return root
