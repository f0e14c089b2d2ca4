"""For the fuzzers: label maps of people's own data, in folders of which one file is damaged."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.file_trees import DirectoryTree
from input_pipeline.folder_source import FolderSource
from input_pipeline.layouts.ade20k import AdeObjectMasks
from input_pipeline.run_lengths import decode_segmentation
from tests.fuzz.mutations import damage, damage_json
from tests.fuzz.reader import Make, Reader
from tests.input_pipeline.label_maps.brush_encoder import encode_mask

_HEIGHT, _WIDTH = 6, 10
_ONE = {"id": 1, "file_name": "a.jpg", "height": _HEIGHT, "width": _WIDTH}
_CATEGORIES = [{"id": 3, "name": "road"}, {"id": 9, "name": "car"}]
_MASK = np.zeros((_HEIGHT, _WIDTH), bool)
_MASK[2:4, 3:6] = True


def _region(number: int, category: int, segmentation: object) -> dict:
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": segmentation}


_INSTANCES = {
    "images": [_ONE],
    "annotations": [
        _region(1, 3, [[0, 0, 9, 0, 9, 5, 0, 5]]),
        _region(2, 9, {"size": [_HEIGHT, _WIDTH], "counts": [20, 10, 30]}),
        _region(3, 9, {"size": [_HEIGHT, _WIDTH], "counts": "d024000f0"}) | {"iscrowd": 1},
    ],
    "categories": _CATEGORIES,
}
_SEGMENTS = [{"id": 1, "category_id": 3}, {"id": 256, "category_id": 9}]
_PANOPTIC = {
    "images": [_ONE],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": _SEGMENTS}],
    "categories": _CATEGORIES,
}
_TASKS = [
    {
        "id": 1,
        "data": {"image": "/data/upload/a.jpg"},
        "annotations": [
            {
                "id": 10,
                "result": [
                    {
                        "original_width": _WIDTH,
                        "original_height": _HEIGHT,
                        "image_rotation": 0,
                        "value": {
                            "format": "rle",
                            "rle": encode_mask(_MASK),
                            "brushlabels": ["car"],
                        },
                        "type": "brushlabels",
                    }
                ],
            }
        ],
    }
]


def _folder(damaged: str, **files: Any) -> Make:
    """A data set of the image a.jpg and of files by name: JSON values, texts or pictures."""

    def make(root: pathlib.Path) -> pathlib.Path:
        for name, content in {"images/a.jpg": Image.new("RGB", (_WIDTH, _HEIGHT)), **files}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Image.Image):
                content.save(path)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return root / damaged

    return make


def _example(path: pathlib.Path) -> dict:
    root = next(part for part in path.parents if part.name == "fuzz")
    jsons = [one.relative_to(root).as_posix() for one in root.glob("*.json")]
    source = FolderSource(root, annotations=jsons[0] if jsons else "annotations")
    return {"names": source.class_names, "label_map": source[0].label_map}


def _objects(path: pathlib.Path) -> dict:
    root = next(part for part in path.parents if part.name == "fuzz")
    found = FolderSource(root, annotations="i.json").object_masks().objects(0)
    masks = [decode_segmentation(one.run_lengths, (_HEIGHT, _WIDTH)) for one in found]
    return {"areas": [one.area for one in found], "masks": np.array(masks)}


def _objects_of_ade(path: pathlib.Path) -> dict:
    masks = AdeObjectMasks(DirectoryTree(path.parent), [path.name], range(100))
    found = masks.objects(0)
    return {"classes": [one.class_id for one in found], "areas": [one.area for one in found]}


def _picture(mode: str) -> Image.Image:
    colors = np.where(_MASK[..., None], np.uint8([0, 1, 0]), np.uint8([1, 0, 0]))
    return Image.fromarray(colors if mode == "RGB" else _MASK.astype(np.uint8) * 255)


_OBJECTS = Image.fromarray(np.stack([_MASK * 5, _MASK, _MASK * 0], axis=-1).astype(np.uint8))
_SEGMENTED = {"p.json": _PANOPTIC, "p/a.png": _picture("RGB")}
_COLORED = {
    "classes.txt": "# label:color_rgb:parts:actions\nroad:1,0,0::\ncar:0,1,0::\n",
    "annotations/a.png": _picture("RGB"),
}
_OF_CAR = "annotations/a_car.png"
_OF_CLASSES = {"classes.txt": "road\ncar\n", _OF_CAR: _picture("L")}

LABEL_MAP_READERS = [
    Reader("coco instances", _folder("i.json", **{"i.json": _INSTANCES}), _example, damage_json),
    Reader("coco instances, bytes", _folder("i.json", **{"i.json": _INSTANCES}), _example, damage),
    Reader("coco objects", _folder("i.json", **{"i.json": _INSTANCES}), _objects, damage_json),
    Reader("ade objects", _folder("o.png", **{"o.png": _OBJECTS}), _objects_of_ade, checked=True),
    Reader("coco panoptic", _folder("p.json", **_SEGMENTED), _example, damage_json),
    Reader("coco panoptic, png", _folder("p/a.png", **_SEGMENTED), _example, checked=True),
    Reader("label studio", _folder("l.json", **{"l.json": _TASKS}), _example, damage_json),
    Reader("colours", _folder("annotations/a.png", **_COLORED), _example, checked=True),
    Reader("list of colours", _folder("classes.txt", **_COLORED), _example),
    Reader(
        "mask of a class", _folder("annotations/a_car.png", **_OF_CLASSES), _example, checked=True
    ),
]
