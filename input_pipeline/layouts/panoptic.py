"""Data sets in COCO's panoptic format, a JSON with PNGs of segment ids: COCO's own and ADE20K's."""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from input_pipeline.dataset_specs import SPECS, DatasetSpec
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.coco_panoptic import open_coco_panoptic
from input_pipeline.label_maps.data_folder import DEFAULT_CLASSES, DataFolder, example_id
from input_pipeline.layouts.base import (
    LayoutSource,
    first_with,
    missing_files,
    report_count,
    stems,
)

_COCO_ROOTS = ("", "coco/")
_ADE_ROOTS = ("ADEChallengeData2016/", "")
_ADE_PARTS = {"train": "training", "val": "validation"}


def open_coco_panoptic_2017(tree: FileTree, split: str) -> LayoutSource:
    """The images of panoptic_<split>2017.json, ordered by their names.

    Raises MissingFiles when there are no images, no JSON or no folder of PNGs of its name.
    """
    name = f"panoptic_{split}2017.json"
    images = [f"{root}{at}{split}2017" for root in _COCO_ROOTS for at in ("", "images/")]
    places = [f"{root}{at}{name}" for root in _COCO_ROOTS for at in ("annotations/", "")]
    spec = SPECS["coco_panoptic"]
    return _open(spec, tree, split, images, places, spec.class_list)


def open_ade20k_panoptic(tree: FileTree, split: str) -> LayoutSource:
    """The images of ade20k_panoptic_<split>.json, ordered by their names.

    Raises MissingFiles as `open_coco_panoptic_2017`, and ValueError for other categories than the
    conversion's, whose ids are those of the classes.
    """
    images = [f"{root}images/{_ADE_PARTS[split]}" for root in _ADE_ROOTS]
    places = [f"{root}ade20k_panoptic_{split}.json" for root in _ADE_ROOTS]
    return _open(SPECS["ade20k_panoptic"], tree, split, images, places, DEFAULT_CLASSES)


def _open(
    spec: DatasetSpec,
    tree: FileTree,
    split: str,
    image_folders: Sequence[str],
    places: Sequence[str],
    classes: str,
) -> LayoutSource:
    images = first_with(tree, image_folders, ".jpg")
    found = next((place for place in places if tree.exists(place)), None)
    missing = {}
    if images is None:
        missing[f"{split} images"] = [f"{folder}/*.jpg" for folder in image_folders]
    if found is None or not tree.exists(found.removesuffix(".json")):
        wanted = [f"{place} with the PNGs in {place.removesuffix('.json')}" for place in places]
        missing["panoptic labels"] = wanted
    if missing:
        raise missing_files(spec, tree, missing)
    paths = tuple(PurePosixPath(f"{stem}.jpg") for stem in stems(tree, images, ".jpg"))
    folder = DataFolder(tree, images, paths, found, classes, ignore_labels=())
    content = _read_json(folder)
    if classes == DEFAULT_CLASSES:
        _check_categories(spec, folder, content)
    labelled = open_coco_panoptic(folder, content)
    if labelled is None:
        raise ValueError(
            f"{folder.where()}: expected COCO's panoptic format, whose annotations have "
            "segments_info; take the JSON of the official conversion"
        )
    report_count(spec, split, len(labelled.paths))
    return LayoutSource(
        spec.name,
        tree,
        [example_id(path) for path in labelled.paths],
        [PurePosixPath(images, path).as_posix() for path in labelled.paths],
        spec.classes.names,
        labelled.labels,
    )


def _read_json(folder: DataFolder) -> object:
    try:
        return json.loads(folder.tree.read(folder.annotations))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder.where()}: expected JSON, {error}; download it again") from error


def _check_categories(spec: DatasetSpec, folder: DataFolder, content: object) -> None:
    rows = content.get("categories") if isinstance(content, dict) else None
    rows = rows if isinstance(rows, list) else []
    ids = [row.get("id") if isinstance(row, dict) else None for row in rows]
    if ids != list(range(spec.num_classes)):
        raise ValueError(
            f"{folder.where()}: expected categories with the ids 0 to {spec.num_classes - 1} in "
            f"this order, found {ids!r:.80}; take the JSON of the official conversion"
        )
