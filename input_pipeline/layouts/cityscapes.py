"""Cityscapes with its fine annotations: instances where there are *_instanceIds.png."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.index_maps import IndexMaps, class_lookup
from input_pipeline.label_maps.interface import LabelMap, OfficialIds
from input_pipeline.layouts.base import (
    LayoutSource,
    contiguous,
    missing_files,
    pair_files,
    report_count,
)

_ROOTS = ("", "cityscapes/", "leftImg8bit_trainvaltest/")
_LABEL_ROOTS = ("", "cityscapes/", "gtFine_trainvaltest/")
_IMAGE = "_leftImg8bit.png"
_KINDS = ("instanceIds", "labelIds", "labelTrainIds")
"""In this order: only the first knows instances."""
_INSTANCES_OF_A_CLASS = 1000


class InstanceIdMaps(IndexMaps):
    """LabelMaps of *_instanceIds.png: 1000 times the label value plus the number of the instance.

    Groups of objects, and classes without objects, have the label value alone.
    """

    def read(self, index: int) -> LabelMap:
        """The label values, and the instances numbered from 1."""
        ids = super().read(index).values
        is_one = ids >= _INSTANCES_OF_A_CLASS
        numbers = np.searchsorted(np.unique(ids[is_one]), ids) + 1
        values = np.where(is_one, ids // _INSTANCES_OF_A_CLASS, ids)
        return LabelMap(values, np.where(is_one, numbers, 0).astype(np.int32))


def open_cityscapes(tree: FileTree, split: str) -> LayoutSource:
    """The images of a split that have a label map, in order of their names.

    Raises MissingFiles when there are no images or no label maps.
    """
    spec = SPECS["cityscapes"]
    images = _names(tree, [f"{root}leftImg8bit/{split}" for root in _ROOTS], _IMAGE)
    label_folders = [f"{root}gtFine/{split}" for root in _LABEL_ROOTS]
    kinds = ((kind, _names(tree, label_folders, f"_gtFine_{kind}.png")) for kind in _KINDS)
    kind, labels = next(((kind, names) for kind, names in kinds if names), ("", {}))
    missing = {}
    if not images:
        missing["images"] = [f"leftImg8bit/{split}/<city>/*{_IMAGE}"]
    if not labels:
        missing["label maps"] = [f"gtFine/{split}/<city>/*_gtFine_{kind}.png" for kind in _KINDS]
    if missing:
        raise missing_files(spec, tree, missing)
    files = pair_files(
        tree,
        sorted(labels),
        image=lambda name: images.get(name, f"leftImg8bit/{split}/{name}{_IMAGE}"),
        label=labels.__getitem__,
        listed_in=f"gtFine/{split}/*/*_gtFine_{kind}.png",
    )
    report_count(spec, split, len(files))
    classes = contiguous(spec.classes) if kind == "labelTrainIds" else spec.classes
    lookup = class_lookup(classes, (255,) if kind == "labelTrainIds" else spec.ignore_labels)
    maps = InstanceIdMaps if kind == "instanceIds" else IndexMaps
    paths = [entry.label for entry in files]
    return LayoutSource(
        spec.name,
        tree,
        [entry.example_id for entry in files],
        [entry.image for entry in files],
        classes.names,
        maps(tree, paths, classes.names, lookup),
        ids=OfficialIds(
            tuple(entry.example_id.rpartition("/")[2] for entry in files), classes.label_values
        ),
    )


def _names(tree: FileTree, folders: Sequence[str], suffix: str) -> dict[str, str]:
    """Files of the first folder that has some of this ending, by city/name without it."""
    for folder in folders:
        start = len(folder) + 1
        found = [name for name in tree.names(folder) if name.endswith(suffix)]
        if found:
            return {name[start:].removesuffix(suffix): name for name in found}
    return {}
