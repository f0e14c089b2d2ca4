"""Masks in one file for each class of an image: `photo_cat.png` or `photo/cat.png`.

Several of one class are numbered, `photo_cat_1.png`. In names of files, classes may have any of
space, _ and - in place of another, and letters of either case.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from input_pipeline.class_lists import ClassList, is_name_of_ignored
from input_pipeline.examples import IGNORE
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.image_files import is_color_image, read_color_map, read_label_map
from input_pipeline.label_maps.data_folder import (
    DataFolder,
    LabelledImages,
    example_id,
    label_files,
    warn_of_unused,
)
from input_pipeline.label_maps.file_endings import find_endings
from input_pipeline.label_maps.interface import LabelMap
from input_pipeline.label_maps.packed_json import digest
from input_pipeline.label_maps.regions import Region, RegionMaps, paint

_NUMBER = re.compile(r"(?P<name>.*)[ _-]+\d+")


def open_masks_per_class(folder: DataFolder) -> LabelledImages | None:
    """Masks whose names begin with those of images; None where a file is named like an image."""
    images = {composed(example_id(path)): path for path in folder.paths}
    files = label_files(folder, folder.annotations)
    splits = {stem: _splits(stem, images) for stem in files}
    if not any(splits.values()) or any(stem in images for stem in files):
        return None
    classes = folder.class_list
    if _are_whole_label_maps(images, files, classes):
        return None
    masks = _masks_of_images(folder, files, splits, classes)
    warn_of_unused(folder, sorted(files[stem] for stem, found in splits.items() if not found))
    if bare := [name for name in images if name not in masks]:
        raise ValueError(
            f"{folder.tree.locate(folder.images)}: {len(bare)} of {len(images)} images have no "
            f"mask in {folder.where()}, such as {shorten(bare)}; for an image without any class "
            f"write one black mask, {bare[0]}_{classes.names[0]}.png, or remove the image"
        )
    of_images = [masks[composed(example_id(path))] for path in folder.paths]
    labels = MasksPerClass(folder.tree, of_images, classes.names)
    return LabelledImages(folder.paths, classes.names, labels)


def _are_whole_label_maps(
    images: Collection[str], files: Collection[str], classes: ClassList
) -> bool:
    """Whether every file is an image's with one ending that is no class, such as `_mask`."""
    endings = find_endings(images, files)
    if len(endings) != 1 or _Names(classes).find(endings[0].of_label[1:]) is not None:
        return False
    return all(stem.removesuffix(endings[0].of_label) in images for stem in files)


class MasksPerClass(RegionMaps):
    """LabelMaps of black-and-white files; `masks` are the paths and class ids of each image."""

    def __init__(
        self,
        tree: FileTree,
        masks: Sequence[Sequence[tuple[str, int]]],
        class_names: Sequence[str],
    ):
        super().__init__(class_names)
        self._tree, self._masks = tree, tuple(map(tuple, masks))

    def read(self, index: int) -> LabelMap:
        """The masks, painted by the rules of `regions`."""
        regions = [
            Region(class_id, _read_mask(self._tree.read(path), self._tree.locate(path)))
            for path, class_id in self._masks[index]
        ]
        size = regions[0].mask.shape
        for (path, _), region in zip(self._masks[index], regions, strict=True):
            if region.mask.shape != size:
                raise ValueError(
                    f"{self._tree.locate(path)}: expected the size of {self.place(index)}, "
                    f"{size[1]}x{size[0]}, got {region.mask.shape[1]}x{region.mask.shape[0]}; save "
                    "all masks at the size of the image"
                )
        return paint(size, regions, self.rest)

    def place(self, index: int) -> str:
        """The image's first mask."""
        return self._tree.locate(self._masks[index][0][0])

    def signature(self, index: int) -> str:
        """Stamps and classes of the masks."""
        masks = [(self._tree.stamp(path), class_id) for path, class_id in self._masks[index]]
        return digest("masks per class", masks, self.class_names)


class _Names:
    """Class ids by names as files have them."""

    def __init__(self, classes: ClassList):
        self._exact = {name: i for i, name in enumerate(classes.names)}
        alike = defaultdict(list)
        for name, i in self._exact.items():
            alike[_plain(name)].append(i)
        self._plain = {name: ids[0] for name, ids in alike.items() if len(ids) == 1}

    def find(self, name: str) -> int | None:
        """Class id, or IGNORE for void; None where the list has no such class."""
        numbered = _NUMBER.fullmatch(name)
        for spelling in (name, numbered["name"]) if numbered else (name,):
            for class_id in (self._exact.get(spelling), self._plain.get(_plain(spelling))):
                if class_id is not None:
                    return class_id
            if is_name_of_ignored(spelling):
                return IGNORE
        return None


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", composed(name).casefold().strip()))


def _splits(stem: str, images: Mapping[str, object]) -> list[tuple[str, str]]:
    """(image, rest) for each _ or / at which the name may be split, shortest image first."""
    ends = [i for i, sign in enumerate(stem) if sign in "_/"]
    return [(stem[:i], stem[i + 1 :]) for i in ends if stem[:i] in images and stem[i + 1 :]]


def _masks_of_images(
    folder: DataFolder,
    files: Mapping[str, str],
    splits: Mapping[str, Sequence[tuple[str, str]]],
    classes: ClassList,
) -> dict[str, list[tuple[str, int]]]:
    """Paths and class ids by image; ValueError for classes that the list lacks."""
    known = _Names(classes)
    masks, strangers = defaultdict(list), defaultdict(list)
    for stem, candidates in splits.items():
        where = folder.tree.locate(files[stem])
        found = [(image, known.find(rest)) for image, rest in candidates]
        found = [(image, class_id) for image, class_id in found if class_id is not None]
        if len(found) > 1:
            raise ValueError(
                f"{where}: may be a mask of {found[0][0]!r} or of {found[1][0]!r}; rename the "
                "images or classes so that one reading is left"
            )
        if found:
            masks[found[0][0]].append((files[stem], found[0][1]))
        elif candidates:
            strangers[candidates[-1][1]].append(where)
    if strangers:
        raise ValueError(_describe_strangers(strangers, folder, classes))
    return masks


def _describe_strangers(
    strangers: Mapping[str, Sequence[str]], folder: DataFolder, classes: ClassList
) -> str:
    name, paths = max(strangers.items(), key=lambda item: len(item[1]))
    message = (
        f"{paths[0]}: {name!r} is no class of {folder.classes} ({shorten(classes.names)}), "
        f"{len(paths)} masks have that name; add it to the list, or rename the files"
    )
    if others := [other for other in strangers if other != name]:
        message += f"; so are {shorten([repr(other) for other in others])}"
    elif len(paths) > 1 or len(folder.paths) == 1:
        message += f". If they are whole label maps, name them like the images, without _{name}"
    return message


def _read_mask(data: bytes, where: str) -> Bool[np.ndarray, "h w"]:
    if is_color_image(data, where):
        values = read_color_map(data, where).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    else:
        values = read_label_map(data, where)
    found = np.unique(values)
    if np.count_nonzero(found) > 1:
        raise ValueError(
            f"{where}: expected a mask of 0 and one other value, found {shorten(found.tolist())}; "
            "save it in black and white, without soft edges, or name whole label maps like the "
            "images"
        )
    return values != 0
