"""Data sets in COCO's panoptic format, a JSON with PNGs of segment ids: COCO's own and ADE20K's."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from input_pipeline.dataset_specs import SPECS, DatasetSpec
from input_pipeline.file_names import shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.coco_instances import open_coco_instances
from input_pipeline.label_maps.coco_panoptic import open_coco_panoptic
from input_pipeline.label_maps.data_folder import DEFAULT_CLASSES, DataFolder, example_id
from input_pipeline.label_maps.interface import ObjectMasks
from input_pipeline.layouts.ade20k import find_ade20k_objects
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
    instances = [place.replace("panoptic_", "instances_") for place in places]

    def find_objects(folder: DataFolder, examples: Sequence[str]):
        found = next((place for place in instances if tree.exists(place)), None)
        if found is None:
            return None
        return functools.partial(_open_objects, replace(folder, annotations=found), examples)

    return _open(spec, tree, split, images, places, spec.class_list, find_objects)


def open_ade20k_panoptic(tree: FileTree, split: str) -> LayoutSource:
    """The images of ade20k_panoptic_<split>.json, ordered by their names.

    Raises MissingFiles as `open_coco_panoptic_2017`, and ValueError for other categories than the
    conversion's, whose ids are those of the classes.
    """
    images = [f"{root}images/{_ADE_PARTS[split]}" for root in _ADE_ROOTS]
    places = [f"{root}ade20k_panoptic_{split}.json" for root in _ADE_ROOTS]

    def find_objects(_, examples: Sequence[str]):
        return find_ade20k_objects(tree, split, examples)

    spec = SPECS["ade20k_panoptic"]
    return _open(spec, tree, split, images, places, DEFAULT_CLASSES, find_objects)


def _open(
    spec: DatasetSpec,
    tree: FileTree,
    split: str,
    image_folders: Sequence[str],
    places: Sequence[str],
    classes: str,
    find_objects: Callable[[DataFolder, Sequence[str]], Callable[[], ObjectMasks] | None],
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
    examples = tuple(example_id(path) for path in labelled.paths)
    return LayoutSource(
        spec.name,
        tree,
        examples,
        [PurePosixPath(images, path).as_posix() for path in labelled.paths],
        spec.classes.names,
        labelled.labels,
        ids=labelled.ids,
        open_objects=find_objects(folder, examples),
    )


def _open_objects(folder: DataFolder, examples: Sequence[str]) -> ObjectMasks:
    """Those of COCO's instances, whose objects overlap, in the order of the examples."""
    labelled = open_coco_instances(folder, _read_json(folder))
    if labelled is None:
        raise ValueError(
            f"{folder.where()}: expected COCO's instances, whose annotations have a segmentation; "
            "download it again, or move it away"
        )
    index_of = {example_id(path): index for index, path in enumerate(labelled.paths)}
    if missing := [example for example in examples if example not in index_of]:
        raise ValueError(
            f"{folder.where()}: lacks {len(missing)} of {len(examples)} images of the panoptic "
            f"labels: {shorten(missing)}; take both of one release, or move it away"
        )
    return labelled.labels.of_images([index_of[example] for example in examples])


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
