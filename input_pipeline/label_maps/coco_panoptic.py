"""COCO's panoptic format: a JSON, and PNGs whose colours are the ids of segments."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from input_pipeline.file_names import portable_path, shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import is_color_image, read_color_map
from input_pipeline.label_maps.coco_document import (
    Categories,
    Classes,
    CocoImage,
    category_of,
    image_rows,
    official_ids,
    read_categories,
    read_classes,
    read_images,
)
from input_pipeline.label_maps.data_folder import DataFolder, LabelledImages, label_files
from input_pipeline.label_maps.interface import LabelMap
from input_pipeline.label_maps.packed_json import digest
from input_pipeline.label_maps.regions import RegionMaps

_VOID = 0
"""The id of pixels of no segment."""


def open_coco_panoptic(folder: DataFolder, content: Any) -> LabelledImages | None:
    """The images of the JSON that are there; None where it is another one.

    The PNGs lie in the folder beside the JSON that has its name without the ending.
    """
    match content:
        case {"images": list(), "annotations": list() as annotations}:
            if not any(isinstance(row, dict) and "segments_info" in row for row in annotations):
                return None
        case _:
            return None
    where = folder.where()
    categories = read_categories(folder, content)
    by_image, used = {}, defaultdict(list)
    for i, row in enumerate(annotations):
        place = f"{where}: annotations[{i}]"
        _check_annotation(row, categories, place)
        if row["image_id"] in by_image:
            raise ValueError(
                f"{place}: image_id {row['image_id']!r} has an annotation already; leave one"
            )
        by_image[row["image_id"]] = [row]
        for segment in row["segments_info"]:
            used[segment["category_id"]].append(row["file_name"])
    classes = read_classes(folder, categories, used)
    images = read_images(folder, image_rows(content, where), by_image)
    if bare := [image.file_name for image in images if not image.annotations]:
        raise ValueError(
            f"{where}: {len(bare)} images have no entry in annotations: {shorten(bare)}; add the "
            "entries or remove the images"
        )
    pngs = _find_pngs(folder, [image.annotations[0]["file_name"] for image in images])
    labels = CocoPanopticMaps(folder.tree, where, images, pngs, classes)
    paths = tuple(image.path for image in images)
    return LabelledImages(paths, classes.names, labels, official_ids(images, classes))


class CocoPanopticMaps(RegionMaps):
    """LabelMaps of a PNG each, whose segments the JSON lists: red + 256 green + 65536 blue."""

    def __init__(
        self,
        tree: FileTree,
        where: str,
        images: Sequence[CocoImage],
        pngs: Sequence[str],
        classes: Classes,
    ):
        super().__init__(classes.names)
        self._tree, self._where = tree, where
        self._images, self._pngs = tuple(images), tuple(pngs)
        self._of_category = dict(classes.of_category)
        self._labelling = digest("coco panoptic", classes.names, sorted(self._of_category.items()))

    def read(self, index: int) -> LabelMap:
        """The classes of the PNG's segments; those that are no crowd are instances."""
        where, data = self.place(index), self._tree.read(self._pngs[index])
        if not is_color_image(data, where):
            raise ValueError(
                f"{where}: expected segment ids in the colours of an RGB image, it has none; "
                "take the PNGs of the panoptic format, not those of semantic label maps"
            )
        red, green, blue = np.moveaxis(read_color_map(data, where).astype(np.int32), -1, 0)
        segments = red + 256 * green + 65536 * blue
        (row,) = self._images[index].annotations
        class_of = {s["id"]: self._of_category[s["category_id"]] for s in row["segments_info"]}
        class_of.setdefault(_VOID, self.rest)
        found, places, pixels = np.unique(segments, return_inverse=True, return_counts=True)
        if strangers := [i for i, number in enumerate(found.tolist()) if number not in class_of]:
            raise ValueError(
                f"{where}: segments {shorten([int(found[i]) for i in strangers])} "
                f"({pixels[strangers].sum():,} of {segments.size:,} pixels) are not in "
                f"segments_info of {row['file_name']!r} in {self._where}; take PNGs and JSON of "
                "one export, and PNGs that were not resized"
            )
        classes = np.array([class_of[number] for number in found.tolist()], np.int32)
        one_each = {s["id"] for s in row["segments_info"] if not s.get("iscrowd")}
        is_one = [number in one_each for number in found.tolist()]
        instances = np.where(is_one, np.cumsum(is_one), 0).astype(np.int32)
        places = places.reshape(segments.shape)
        return LabelMap(classes[places], instances[places])

    def place(self, index: int) -> str:
        """The PNG."""
        return self._tree.locate(self._pngs[index])

    def signature(self, index: int) -> str:
        """Of the PNG and of its segments, and what categories mean."""
        stamp = self._tree.stamp(self._pngs[index])
        return f"{stamp}|{self._images[index].digest}|{self._labelling}"


def _check_annotation(row: object, categories: Categories, where: str) -> None:
    match row:
        case {
            "image_id": int() | str(),
            "file_name": str() as name,
            "segments_info": list() as segments,
        } if portable_path(name).name:
            pass
        case _:
            raise ValueError(
                f"{where}: expected an annotation with image_id, file_name and segments_info, "
                f"found {row!r:.120}; correct or remove it"
            )
    for i, segment in enumerate(segments):
        place = f"{where}: segments_info[{i}]"
        if not isinstance(segment, dict) or type(segment.get("id")) is not int:
            raise ValueError(
                f"{place}: expected a segment with id and category_id, {segment!r:.60}"
            )
        category_of(segment, categories, place)
    ids = [segment["id"] for segment in segments]
    if len(set(ids)) < len(ids):
        twice = next(number for number in ids if ids.count(number) > 1)
        raise ValueError(f"{where}: segments_info has the id {twice} twice; leave one of the two")


def _find_pngs(folder: DataFolder, names: Sequence[str]) -> list[str]:
    names = [portable_path(name).with_suffix("").as_posix() for name in names]
    at = _folder_of_pngs(folder, f"{names[0]}.png")
    present = label_files(folder, at)
    missing = [folder.tree.locate(f"{at}/{name}.png") for name in names if name not in present]
    if missing:
        raise ValueError(
            f"{folder.where()}: {len(missing)} of {len(names)} PNGs are missing: "
            f"{shorten(missing)}; put them in the folder {folder.tree.locate(at)}"
        )
    return [present[name] for name in names]


def _folder_of_pngs(folder: DataFolder, name: str) -> str:
    """The folder with the JSON's name, else the only one beside the images with such a file."""
    at = folder.annotations.removesuffix(PurePosixPath(folder.annotations).suffix)
    if folder.tree.exists(at):
        return at
    ends = f"/{name}"
    found = {
        f"/{path}".removesuffix(ends)[1:] for path in folder.tree.names() if path.endswith(ends)
    }
    found -= {folder.images}
    if len(found) != 1:
        raise ValueError(
            f"{folder.where()}: expected its PNGs in the folder {folder.tree.locate(at)}, which "
            f"has its name without the ending; there is none, and {name} is in "
            f"{shorten(sorted(found)) or 'no other folder'}"
        )
    return found.pop()
