"""ADE20K with its full vocabulary: release 2021_17_01, the 847 classes used for evaluation.

Two layouts are read, both usually found in one folder `ADE20K_2021_17_01`:

    images_detectron2/{training,validation}/*.jpg       short side at most 512 pixels, as prepared
    annotations_detectron2/{training,validation}/*.tif  with MaskFormer's script; 0..846, 65535

    index_ade20k.pkl                                    the release itself
    images/ADE/{training,validation}/<scene>/*.jpg      and beside each image <name>_seg.png

The first is preferred, since published numbers were measured on it. In the release, the class of a
pixel is (red // 10) * 256 + green: 0 where nothing is labelled, v for the v-th of the 3,688 names
in the index. Objects outside the 847 classes are ignored. Reading the official index takes some
seconds and 2 GB of memory, since it also counts every object in every image.
"""

import io
import logging
import re

import numpy as np
from jaxtyping import Int32
from PIL import Image

from input_pipeline.class_lists import ClassList
from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import IGNORE
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import read_image
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.label_maps.interface import UNKNOWN
from input_pipeline.layouts.base import (
    ExampleFiles,
    LayoutSource,
    contiguous,
    index_source,
    missing_files,
    pair_files,
    report_count,
    shorten,
    stems,
)
from input_pipeline.layouts.inert_pickle import StandIn, read_inert_pickle

_SPEC = SPECS["ade20k_full"]
_RELEASE = "ADE20K_2021_17_01"
_ROOTS = ("", f"{_RELEASE}/", f"ade/{_RELEASE}/")
_INDEX = "index_ade20k.pkl"
_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}
# Spelling may be tidied between copies of one release; another release numbers its objects anew.
_MIN_AGREEING_NAMES = 0.9

logger = logging.getLogger(__name__)


def open_ade20k_full(tree: FileTree, split: str) -> LayoutSource:
    """Examples of a split in order of their names, which are file names without the suffix.

    Raises MissingFiles when neither layout is there, and ValueError when some of its files are
    missing or the index is of another release.
    """
    part = _FOLDER_OF_SPLIT[split]
    for root in _ROOTS:
        if stems(tree, f"{root}images_detectron2/{part}", ".jpg"):
            return _open_prepared(tree, root, split)
    for root in _ROOTS:
        if tree.exists(f"{root}{_INDEX}"):
            return _open_release(tree, root, split)
    places = [
        *(f"{root}{_INDEX} with {root}images/ADE/{part}/" for root in _ROOTS),
        *(f"{root}images_detectron2/{part}/*.jpg" for root in _ROOTS),
    ]
    raise missing_files(_SPEC, tree, {"images and labels": places})


def read_object_ids(data: bytes, where: str) -> Int32[np.ndarray, "h w"]:
    """Object ids of a `_seg.png`: 0 where nothing is labelled, then 1 for the first in the index.

    Raises ValueError that begins with `where`.
    """
    colors = read_image(data, where).astype(np.int32)
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(
                f"{where}: expected a colour image, (red // 10) * 256 + green of which is the "
                f"object, got mode {image.mode}; use the _seg.png of the release {_RELEASE}"
            )
    return colors[..., 0] // 10 * 256 + colors[..., 1]


def _open_prepared(tree: FileTree, root: str, split: str) -> LayoutSource:
    images = f"{root}images_detectron2/{_FOLDER_OF_SPLIT[split]}"
    labels = f"{root}annotations_detectron2/{_FOLDER_OF_SPLIT[split]}"
    files = pair_files(
        tree,
        stems(tree, images, ".jpg"),
        image=lambda name: f"{images}/{name}.jpg",
        label=lambda name: f"{labels}/{name}.tif",
        listed_in=f"{images}/*.jpg",
    )
    logger.info("%s %s: %d images of %s", _SPEC.name, split, len(files), tree.locate(images))
    report_count(_SPEC, split, len(files))
    lookup = class_lookup(contiguous(_SPEC.classes), _SPEC.ignore_labels)
    return index_source(_SPEC.name, tree, files, _SPEC.classes.names, lookup)


def _open_release(tree: FileTree, root: str, split: str) -> LayoutSource:
    classes = _SPEC.classes
    where = tree.locate(f"{root}{_INDEX}")
    index = read_inert_pickle(tree.read(f"{root}{_INDEX}"), where)
    folders, names, objects = (
        _strings(index, key, where) for key in ("folder", "filename", "objectnames")
    )
    _check_objects(objects, classes, where)
    if len(folders) != len(names):
        raise ValueError(
            f"{where}: expected a folder for every file name, got {len(folders)} folders for "
            f"{len(names)} names; download the file again"
        )
    files = sorted(
        (
            _files_of(folder, name, root, where)
            for folder, name in zip(folders, names, strict=True)
            if ("_val_" in name) == (split == "val")
        ),
        key=lambda entry: entry.example_id,
    )
    _check_files(tree, files, where)
    logger.info("%s %s: %d images of %s", _SPEC.name, split, len(files), where)
    report_count(_SPEC, split, len(files))
    lookup = np.full(max(len(objects), *classes.label_values) + 2, IGNORE, np.int32)
    lookup[-1] = UNKNOWN
    lookup[list(classes.label_values)] = np.arange(len(classes.names))
    return index_source(_SPEC.name, tree, files, classes.names, lookup, read_object_ids)


def _strings(index: object, key: str, where: str) -> list[str]:
    """A list of strings of the index, which may have come as an array of objects."""
    values = index.get(key) if isinstance(index, dict) else None
    if isinstance(values, StandIn):
        values = values.items
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"{where}: expected a dict in which {key!r} is a list of strings, found something "
            f"else; download the {_INDEX} of the release {_RELEASE} again"
        )
    return list(values)


def _check_objects(objects: list[str], classes: ClassList, where: str) -> None:
    """Refuses an index whose numbers stand for other objects than in our class list."""
    different = [
        f"{value} is {found!r}, not {name!r}"
        for name, value in zip(classes.names, classes.label_values, strict=True)
        for found in [objects[value - 1] if value <= len(objects) else "nothing"]
        if _plain(found) != _plain(name)
    ]
    if len(different) > (1 - _MIN_AGREEING_NAMES) * len(classes.names):
        raise ValueError(
            f"{where}: this is not the index of the release {_RELEASE}: "
            f"{len(different)} of {len(classes.names)} objects have another name: "
            f"{shorten(different)}. Use that release; others number their objects differently"
        )
    if different:
        logger.warning("%s: some objects are named differently: %s", where, shorten(different))


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _files_of(folder: str, name: str, root: str, where: str) -> ExampleFiles:
    """Paths of one example; the index writes folders as ADE20K_2021_17_01/images/ADE/..."""
    inside = folder.strip("/").removeprefix(f"{_RELEASE}/")
    stem = name.removesuffix(".jpg")
    if not inside.startswith("images/") or ".." in inside.split("/") or "/" in name or stem == name:
        raise ValueError(
            f"{where}: expected images {_RELEASE}/images/.../<name>.jpg, the index lists "
            f"{folder!r}, {name!r}; download the {_INDEX} of this release again"
        )
    path = f"{root}{inside}/{stem}"
    return ExampleFiles(stem, f"{path}.jpg", f"{path}_seg.png")


def _check_files(tree: FileTree, files: list[ExampleFiles], where: str) -> None:
    """Asks for each file: listing would walk a million masks of single objects in the folders."""
    if not files:
        raise ValueError(f"{where}: the index lists no image of this split")
    needed = [path for entry in files for path in (entry.image, entry.label)]
    missing = [path for path in needed if not tree.exists(path)]
    if missing:
        raise ValueError(
            f"{tree.where}: {len(missing)} of the {len(needed)} files that {where} lists are "
            f"missing: {shorten(missing)}. Extract the release completely. Looked in "
            f"{tree.describe()}"
        )
