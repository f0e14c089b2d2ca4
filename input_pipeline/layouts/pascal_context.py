"""Pascal Context (VOC 2010 images) with its 59 or all of its 459 classes.

Three layouts are read; VOC2010 may also lie directly in the root, or in VOCdevkit:

    pascal_ctx_d2/images/{training,validation}/*.jpg    as prepared by the scripts that detectron2
    pascal_ctx_d2/annotations_ctx59/.../*.png           users share: 0..58 and 255, or 0..458 and
    pascal_ctx_d2/annotations_ctx459/.../*.tif          65535 in 16 bits

    VOC2010/JPEGImages/*.jpg                            as prepared with mmsegmentation's converter,
    VOC2010/SegmentationClassContext/*.png              59 classes only: 0 (none of them), 1..59
    VOC2010/ImageSets/SegmentationContext/{train,val}.txt

    VOC2010/JPEGImages/*.jpg                            the official archives: the images of VOC
    VOC2010/ImageSets/Main/{train,val}.txt              and the label maps of Pascal Context, in
    trainval/*.mat                                      LabelMap: 0 or 1..459, a line of labels.txt

The two counts that circulate come from the lists: VOC's own have 4,998 and 5,105 images, those of
the Detail API, which the preparation scripts use, 4,996 and 5,104.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.io
from jaxtyping import Int32

from input_pipeline.class_lists import ClassList
from input_pipeline.dataset_specs import SPECS, DatasetSpec
from input_pipeline.examples import IGNORE
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import read_label_map
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.label_maps.interface import UNKNOWN
from input_pipeline.layouts.base import (
    LayoutSource,
    contiguous,
    index_source,
    missing_files,
    pair_files,
    read_split,
    report_count,
    stems,
)

_PREPARED_ROOTS = ("", "pascal_ctx_d2/")
_VOC_ROOTS = ("VOCdevkit/VOC2010/", "VOC2010/", "")
_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}
_SPEC_59, _SPEC_459 = SPECS["pascal_context_59"], SPECS["pascal_context_459"]
_PREPARED_LABELS = {
    _SPEC_59.name: ("annotations_ctx59", ".png"),
    _SPEC_459.name: ("annotations_ctx459", ".tif"),
}
_CONVERTED = "SegmentationClassContext"
# The one class of the 59 that has another name among the 459.
_NAMES_IN_459 = {"diningtable": "table"}

logger = logging.getLogger(__name__)


def open_pascal_context_59(tree: FileTree, split: str) -> LayoutSource:
    """Examples of a split with the 59 frequent classes; the others are ignored.

    In the order of the split's list, or of names where the layout has none. Raises MissingFiles
    when no layout is there, and ValueError when some of its files are missing.
    """
    return _open(_SPEC_59, tree, split)


def open_pascal_context_459(tree: FileTree, split: str) -> LayoutSource:
    """Examples of a split with all classes; order and errors as for the 59."""
    return _open(_SPEC_459, tree, split)


def read_label_matrix(data: bytes, where: str) -> Int32[np.ndarray, "h w"]:
    """The variable LabelMap of a MATLAB file. Raises ValueError that begins with `where`."""
    try:
        values = scipy.io.loadmat(io.BytesIO(data), variable_names=["LabelMap"]).get("LabelMap")
    # What scipy raises for a corrupt file depends on which byte is corrupt.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{where}: cannot be read as a MATLAB file: {reason}; extract trainval.tar.gz again"
        ) from error
    if values is None or values.ndim != 2 or values.dtype.kind not in "iu":
        found = "none" if values is None else f"{values.dtype} of shape {values.shape}"
        raise ValueError(
            f"{where}: expected a matrix of integers named LabelMap, found {found}; use the files "
            "of Pascal Context's trainval.tar.gz"
        )
    return values.astype(np.int32)


def _open(spec: DatasetSpec, tree: FileTree, split: str) -> LayoutSource:
    annotations, suffix = _PREPARED_LABELS[spec.name]
    for root in _PREPARED_ROOTS:
        labels = f"{root}{annotations}/{_FOLDER_OF_SPLIT[split]}"
        if names := stems(tree, labels, suffix):
            images = f"{root}images/{_FOLDER_OF_SPLIT[split]}"
            lookup = class_lookup(contiguous(spec.classes), spec.ignore_labels)
            paths = _Paths(images, labels, suffix, listed_in=f"{labels}/*{suffix}")
            return _source(spec, tree, split, names, paths, lookup)
    root = next((root for root in _VOC_ROOTS if tree.exists(f"{root}JPEGImages")), None)
    if root is None:
        places = [f"{root}JPEGImages/*.jpg" for root in _VOC_ROOTS]
        places += [f"{root}images/{_FOLDER_OF_SPLIT[split]}/*.jpg" for root in _PREPARED_ROOTS]
        raise missing_files(spec, tree, {"images": places, "labels": _label_places(spec, split)})
    images = f"{root}JPEGImages"
    listed = f"{root}ImageSets/SegmentationContext/{split}.txt"
    if spec is _SPEC_59 and tree.exists(f"{root}{_CONVERTED}"):
        from_one = ClassList(spec.classes.names, tuple(range(1, 60)))
        paths = _Paths(images, f"{root}{_CONVERTED}", ".png", listed_in=listed)
        lookup = class_lookup(from_one, (0, 255))
        return _source(spec, tree, split, _ids(spec, tree, listed), paths, lookup)
    matrices = next((at for at in ("trainval", f"{root}trainval") if tree.exists(at)), None)
    if matrices is None:
        raise missing_files(spec, tree, {"labels": _label_places(spec, split)})
    if not tree.exists(listed):
        listed = f"{root}ImageSets/Main/{split}.txt"
    paths = _Paths(images, matrices, ".mat", listed_in=listed)
    lookup = _lookup_of_official_values(spec.classes)
    return _source(spec, tree, split, _ids(spec, tree, listed), paths, lookup, read_label_matrix)


@dataclass(frozen=True)
class _Paths:
    """Folders of images and label maps, and what says which of them belong to the split."""

    images: str
    labels: str
    suffix: str
    listed_in: str


def _source(
    spec: DatasetSpec,
    tree: FileTree,
    split: str,
    example_ids: list[str],
    paths: _Paths,
    lookup: Int32[np.ndarray, " v"],
    read_values: Callable[[bytes, str], Int32[np.ndarray, "h w"]] = read_label_map,
) -> LayoutSource:
    files = pair_files(
        tree,
        example_ids,
        image=lambda name: f"{paths.images}/{name}.jpg",
        label=lambda name: f"{paths.labels}/{name}{paths.suffix}",
        listed_in=paths.listed_in,
    )
    where = tree.locate(paths.listed_in)
    logger.info("%s %s: %d images, those of %s", spec.name, split, len(files), where)
    report_count(spec, split, len(files))
    return index_source(spec.name, tree, files, spec.classes.names, lookup, read_values)


def _lookup_of_official_values(classes: ClassList) -> Int32[np.ndarray, " v"]:
    """Class id of every value of LabelMap, a line of labels.txt; other classes are ignored."""
    lines = _SPEC_459.classes.names
    lookup = np.full(len(lines) + 2, IGNORE, np.int32)
    lookup[-1] = UNKNOWN
    for class_id, name in enumerate(classes.names):
        lookup[lines.index(_NAMES_IN_459.get(name, name)) + 1] = class_id
    return lookup


def _ids(spec: DatasetSpec, tree: FileTree, listed: str) -> list[str]:
    if not tree.exists(listed):
        raise missing_files(spec, tree, {"images": [listed]})
    return read_split(tree, listed)


def _label_places(spec: DatasetSpec, split: str) -> list[str]:
    annotations, suffix = _PREPARED_LABELS[spec.name]
    places = ["trainval/*.mat"]
    if spec is _SPEC_59:
        places += [f"{root}{_CONVERTED}/*.png" for root in _VOC_ROOTS]
    part = _FOLDER_OF_SPLIT[split]
    return places + [f"{root}{annotations}/{part}/*{suffix}" for root in _PREPARED_ROOTS]
