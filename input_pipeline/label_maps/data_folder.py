"""What every kind of label maps is opened from, and what opening gives."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list, parse_class_list
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.file_endings import SAME, find_endings
from input_pipeline.label_maps.interface import LabelMaps

DEFAULT_CLASSES = "classes.txt"

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
        known = name in BUILT_IN or Path(name).is_absolute()
        return load_class_list(name if known else self.tree.locate(name), self.ignore_labels)

    def where(self) -> str:
        """The annotations, for messages."""
        return self.tree.locate(self.annotations)


@dataclass(frozen=True)
class LabelledImages:
    """Images, relative to their folder, with label maps in the same order."""

    paths: tuple[PurePosixPath, ...]
    class_names: tuple[str, ...]
    labels: LabelMaps


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
            f"map. Expected, but missing: {shorten(places)}. Add the label maps or remove the "
            "images"
        )
    labels = [present[composed(name)] for name in expected]
    of_images = {PurePosixPath(folder.images, path).as_posix() for path in folder.paths}
    warn_of_unused(folder, sorted(set(present.values()) - set(labels) - of_images))
    return labels


def warn_of_unused(folder: DataFolder, unused: list[str]) -> None:
    """Logs label maps that belong to no image."""
    if unused:
        logger.warning(
            "%s: %d label maps have no image and are left out: %s",
            folder.where(),
            len(unused),
            shorten(unused),
        )
