"""ADE20K-150, the scene parsing benchmark (ADEChallengeData2016), with its instances."""

import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_names import shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import is_color_image, read_color_map
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.label_maps.interface import ObjectMask, OfficialIds
from input_pipeline.layouts.base import (
    LayoutSource,
    contiguous,
    first_with,
    index_source,
    missing_files,
    pair_files,
    report_count,
    stems,
)
from input_pipeline.run_lengths import encode_mask

_ROOTS = ("ADEChallengeData2016/", "")
_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}
_CONTIGUOUS_IGNORE = (255,)


def open_ade20k_150(tree: FileTree, split: str) -> LayoutSource:
    """The examples of a split that have a label map, in order of their names.

    Raises MissingFiles when there are no images or no label maps.
    """
    spec = SPECS["ade20k_150"]
    part = _FOLDER_OF_SPLIT[split]
    folders = {
        name: [f"{root}{name}/{part}" for root in _ROOTS]
        for name in ("images", "annotations", "annotations_detectron2")
    }
    images = first_with(tree, folders["images"], ".jpg")
    official = first_with(tree, folders["annotations"], ".png")
    labels = official or first_with(tree, folders["annotations_detectron2"], ".png")
    if images is None or labels is None:
        wanted, suffix = ("images", "jpg") if images is None else ("annotations", "png")
        places = [f"{folder}/*.{suffix}" for folder in folders[wanted]]
        raise missing_files(spec, tree, {"images and label maps": places})
    files = pair_files(
        tree,
        stems(tree, labels, ".png"),
        image=lambda name: f"{images}/{name}.jpg",
        label=lambda name: f"{labels}/{name}.png",
        listed_in=f"{labels}/*.png",
    )
    report_count(spec, split, len(files))
    if official:
        lookup = class_lookup(spec.classes, spec.ignore_labels)
    else:
        lookup = class_lookup(contiguous(spec.classes), _CONTIGUOUS_IGNORE)
    names = [entry.example_id for entry in files]
    return index_source(
        spec.name,
        tree,
        files,
        spec.classes.names,
        lookup,
        ids=OfficialIds(tuple(names), tuple(range(spec.num_classes))),
        open_objects=find_ade20k_objects(tree, split, names),
    )


class AdeObjectMasks:
    """ObjectMasks of annotations_instance: red is the thing, counted from 1, green the object."""

    def __init__(self, tree: FileTree, paths: Sequence[str], things: Sequence[int]):
        self._tree, self._paths, self._things = tree, tuple(paths), tuple(things)

    def objects(self, index: int) -> list[ObjectMask]:
        """As the official conversion makes them of an image's PNG, none of them a crowd."""
        where = self._tree.locate(self._paths[index])
        data = self._tree.read(self._paths[index])
        if not is_color_image(data, where):
            raise ValueError(f"{where}: expected red and green of objects, got a grey image")
        red, green, _ = np.moveaxis(read_color_map(data, where), -1, 0)
        return [
            self._object(red[green == number], green == number, f"{where}: object {number}")
            for number in np.unique(green[green > 0]).tolist()
        ]

    def _object(self, categories: np.ndarray, mask: np.ndarray, where: str) -> ObjectMask:
        first, last = int(categories.min()), int(categories.max())
        if first != last or not 1 <= first <= len(self._things):
            raise ValueError(
                f"{where}: expected one thing from 1 to {len(self._things)} as its red, found "
                f"{first} to {last}; take the PNGs of the official annotations_instance"
            )
        return ObjectMask(self._things[first - 1], encode_mask(mask), float(mask.sum()))

    def object_signature(self, index: int) -> str:
        """The stamp of the file."""
        return self._tree.stamp(self._paths[index])


def find_ade20k_objects(tree: FileTree, split: str, examples: Sequence[str]):
    """What opens the objects of these examples; None where annotations_instance is not there."""
    folders = [f"{root}annotations_instance/{_FOLDER_OF_SPLIT[split]}" for root in _ROOTS]
    folder = first_with(tree, folders, ".png")
    return folder and functools.partial(_open_objects, tree, folder, tuple(examples))


def _open_objects(tree: FileTree, folder: str, examples: Sequence[str]) -> AdeObjectMasks:
    there = set(stems(tree, folder, ".png"))
    if missing := [example for example in examples if example not in there]:
        raise ValueError(
            f"{tree.locate(folder)}: {len(missing)} of {len(examples)} images have no objects: "
            f"{shorten(missing)}; complete it or move it away"
        )
    paths = [f"{folder}/{example}.png" for example in examples]
    return AdeObjectMasks(tree, paths, SPECS["ade20k_150"].thing_ids)
