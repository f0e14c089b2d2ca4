"""What every kind of label maps is opened from, and what opening gives."""

import functools
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list, parse_class_list
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.file_endings import SAME, find_endings
from input_pipeline.label_maps.interface import LabelMaps, OfficialIds

DEFAULT_CLASSES = "classes.txt"
_ENDINGS_OF_LISTS = (".txt", ".csv", ".tsv", ".yaml", ".yml", ".pbtxt", ".names")
_OF_LABEL_STUDIO = re.compile(r"(.*/)?task-\d+-annotation-\d+-")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFolder:
    """Images of a tree and the settings that say where their labels are.

    `paths` are those of the images, relative to the folder `images`; `annotations` is a folder or
    a file, `classes` a file (relative to the tree or absolute) or the name of a built-in list.
    """

    tree: FileTree
    images: str
    paths: tuple[PurePosixPath, ...]
    annotations: str
    classes: str | Path
    ignore_labels: tuple[int, ...]

    def has_class_list(self) -> bool:
        """Whether the user gave one, be it that the file is missing."""
        return str(self.classes) != DEFAULT_CLASSES or self.tree.exists(DEFAULT_CLASSES)

    @functools.cached_property
    def class_list(self) -> ClassList:
        """The class list, read once. ValueError where there is none, and as `parse_class_list`."""
        name = str(self.classes)
        if self.tree.exists(name):
            where = self.tree.locate(name)
            return parse_class_list(self.tree.read(name), where, self.ignore_labels)
        if name == DEFAULT_CLASSES:
            raise ValueError(self._describe_missing_list())
        known = name in BUILT_IN or Path(name).is_absolute()
        return load_class_list(name if known else self.tree.locate(name), self.ignore_labels)

    def _describe_missing_list(self) -> str:
        lists = (n for n in self.tree.names() if n.lower().endswith(_ENDINGS_OF_LISTS))
        near = sorted(lists, key=lambda name: (name.count("/"), name))
        return (
            f"{self.tree.locate(DEFAULT_CLASSES)}: there is no such class list; set "
            f"config.data.classes to a file of it ({shorten(near) or 'none has a known ending'}), "
            f"or to a built-in list ({', '.join(BUILT_IN)})"
        )

    def where(self) -> str:
        """The annotations, for messages."""
        return self.tree.locate(self.annotations)


@dataclass(frozen=True)
class LabelledImages:
    """Images, relative to their folder, with label maps in the same order."""

    paths: tuple[PurePosixPath, ...]
    class_names: tuple[str, ...]
    labels: LabelMaps
    ids: OfficialIds | None = None
    """Where the labels have some."""


def example_id(path: PurePosixPath) -> str:
    """What an image goes by: its path without the ending."""
    return path.with_suffix("").as_posix()


def label_files(folder: DataFolder, at: str) -> dict[str, str]:
    """Paths in the tree of the PNG files of a folder in it.

    By names relative to that folder, without the ending and with composed accents.
    """
    start = len(at) + 1 if at else 0
    names = (name for name in folder.tree.names(at) if name.lower().endswith(".png"))
    return {composed(name[start:-4]): name for name in names}


def one_file_per_image(folder: DataFolder, of_cityscapes: Sequence[str]) -> list[str]:
    """The PNG files named like the images, or with an ending of `find_endings`, in their order.

    Label maps without an image are counted and named in a warning. ValueError for images without
    a label map, and for label maps with several endings.
    """
    tree, present = folder.tree, label_files(folder, folder.annotations)
    images = [composed(example_id(path)) for path in folder.paths]
    endings = find_endings(images, present, of_cityscapes) or [SAME]
    if len(endings) > 1:
        raise ValueError(
            f"{folder.where()}: label maps of an image end in "
            f"{' or '.join(ending.of_label for ending in endings)}; move those away that should "
            "not be read"
        )
    ending = endings[0]
    if ending != SAME:
        logger.info("%s: label maps are those that end in %s.png", folder.where(), ending.of_label)
        present = {name: path for name, path in present.items() if name.endswith(ending.of_label)}
    expected = [ending.label_of(example_id(path)) for path in folder.paths]
    missing = [name for name in expected if composed(name) not in present]
    if missing:
        places = [tree.locate(f"{PurePosixPath(folder.annotations, name)}.png") for name in missing]
        raise ValueError(
            f"{tree.locate(folder.images)}: {len(missing)} of {len(expected)} images have no label "
            f"map. Expected, but missing: {shorten(places)}. {_advice(folder, present)}"
        )
    labels = [present[composed(name)] for name in expected]
    of_images = {PurePosixPath(folder.images, path).as_posix() for path in folder.paths}
    if own := sorted(of_images.intersection(labels)):
        raise ValueError(
            f"{tree.locate(own[0])}: is an image and its own label map; set config.data.images and "
            "config.data.annotations to different folders, or let names of label maps end in _mask"
        )
    warn_of_unused(folder, sorted(set(present.values()) - set(labels) - of_images))
    return labels


def _advice(folder: DataFolder, present: Mapping[str, str]) -> str:
    """What to do where label maps are missing, by what there is instead."""
    if any(map(_OF_LABEL_STUDIO.match, present)):
        return (
            "PNGs of Label Studio do not say which image they belong to: export the project as "
            "JSON, and set config.data.annotations to it"
        )
    if present:
        return "Add the label maps or remove the images"
    names = folder.tree.names(folder.annotations)
    endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
    there = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
    return (
        f"The folder has no PNG files ({there or 'it is empty'}): set config.data.annotations to "
        "the folder that has them, or export PNG label maps or COCO's JSON"
    )


def warn_of_unused(folder: DataFolder, unused: list[str]) -> None:
    """Logs label maps that belong to no image."""
    if unused:
        logger.warning(
            "%s: %d label maps have no image and are left out: %s",
            folder.where(),
            len(unused),
            shorten(unused),
        )
