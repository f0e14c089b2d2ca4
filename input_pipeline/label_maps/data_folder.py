"""What every kind of label maps is opened from, and what opening gives."""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list, parse_class_list
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree
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

    def class_list(self) -> ClassList:
        """Reads the class list. ValueError where there is none, and as `parse_class_list`."""
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

    By names with composed accents and the ending in lower case.
    """
    names = folder.tree.names(at)
    return {f"{composed(name[:-4])}.png": name for name in names if name.lower().endswith(".png")}


def one_file_per_image(folder: DataFolder) -> list[str]:
    """The PNG files named like the images, in their order.

    Label maps without an image are counted and named in a warning. ValueError for images without
    a label map.
    """
    tree, present = folder.tree, label_files(folder, folder.annotations)
    expected = [f"{PurePosixPath(folder.annotations, example_id(p))}.png" for p in folder.paths]
    missing = [tree.locate(name) for name in expected if composed(name) not in present]
    if missing:
        raise ValueError(
            f"{tree.locate(folder.images)}: {len(missing)} of {len(expected)} images have no label "
            f"map. Expected, but missing: {shorten(missing)}. Add the label maps or remove the "
            "images"
        )
    labels = [present[composed(name)] for name in expected]
    images = {PurePosixPath(folder.images, path).as_posix() for path in folder.paths}
    warn_of_unused(folder, sorted(set(present.values()) - set(labels) - images))
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
