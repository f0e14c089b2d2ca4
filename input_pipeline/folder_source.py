"""A data set kept as a folder of images beside a folder of label maps."""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from input_pipeline.class_lists import UNLESS_NAMED
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree, open_tree
from input_pipeline.image_files import IMAGE_SUFFIXES
from input_pipeline.label_maps.data_folder import DEFAULT_CLASSES, DataFolder, example_id
from input_pipeline.label_maps.file_endings import without_label_maps
from input_pipeline.label_maps.opening import JSON_SUFFIX, open_label_maps
from input_pipeline.layouts.base import LayoutSource, describe_left_out
from input_pipeline.subtree import only_folder

logger = logging.getLogger(__name__)


class FolderSource(LayoutSource):
    """Examples of `root/images/**` with label maps of `root/annotations`.

    `annotations` is a folder of label maps (`<path of the image>.png`), or a JSON; see
    docs/label_maps.md for all kinds. `root` may be an archive, and any of its folders may be inside
    an archive in it. `classes` is a file (relative to `root` or absolute) or the name of a built-in
    class list. `ignore_labels` are the values of unlabelled pixels in label maps of indices: 0 in
    ADE20K, 0 and 255 in VOC without its background class; by default 255, unless a class has it.
    `synonyms` are the further names of classes that have some. Files are decoded on access only;
    the constructor checks what names, class lists and JSONs can tell.
    """

    def __init__(
        self,
        root: str | Path,
        images: str = "images",
        annotations: str = "annotations",
        classes: str | Path = DEFAULT_CLASSES,
        ignore_labels: Sequence[int] = UNLESS_NAMED,
    ):
        tree = open_tree(root)
        images, annotations = _tidy(images), _tidy(annotations)
        if top := _single_folder_with(tree, images):
            images, annotations = f"{top}/{images}", f"{top}/{annotations}"
            classes = f"{top}/{classes}" if tree.exists(f"{top}/{classes}") else classes
        for path, what in ((images, "a folder"), (annotations, "a folder or a .json file")):
            if not tree.exists(path):
                raise ValueError(_describe_missing(tree, path, what))
        annotations = _only_json(tree, annotations) or annotations
        paths = _find_images(tree, images, {annotations, str(classes)})
        if images == annotations:
            paths = without_label_maps(paths)
        folder = DataFolder(tree, images, paths, annotations, classes, tuple(ignore_labels))
        _check_names(folder)
        labelled = open_label_maps(folder)
        super().__init__(
            "folder",
            tree,
            [example_id(path) for path in labelled.paths],
            [PurePosixPath(images, path).as_posix() for path in labelled.paths],
            labelled.class_names,
            labelled.labels,
            folder.class_list.further_names if folder.has_class_list() else {},
            labelled.ids,
        )
        if folder.has_class_list():
            self.things = folder.class_list.things


def _tidy(folder: str) -> str:
    """The folder without './' and slashes at the end; '' for the root itself."""
    path = PurePosixPath(folder)
    return path.as_posix() if path.parts else ""


def _single_folder_with(tree: FileTree, images: str) -> str | None:
    """The one folder at the top in which everything lies, as zip programs pack a folder."""
    if not images or images.startswith("/") or tree.exists(images):
        return None
    below = only_folder(tree)
    if below is None or not below.exists(images):
        return None
    logger.info("%s: reading its only folder, %s", tree.where, below.folder)
    return below.folder


def _describe_missing(tree: FileTree, path: str, what: str) -> str:
    tops = sorted({name.partition("/")[0] for name in tree.names()})
    return (
        f"{tree.locate(path)}: expected {what}, there is none; looked in {tree.describe()}, which "
        f"has {shorten(tops) or 'no files'}; set config.data.images and config.data.annotations, "
        "or export the data set with its images"
    )


def _only_json(tree: FileTree, folder: str) -> str | None:
    """The JSON in a folder without label maps, such as annotations/instances_default.json."""
    names = tree.names(folder)
    jsons = [name for name in names if name.lower().endswith(JSON_SUFFIX)]
    of_panoptic = tuple(f"{name[: -len(JSON_SUFFIX)]}/" for name in jsons)
    pngs = (name for name in names if name.lower().endswith(".png"))
    if not jsons or not all(name.startswith(of_panoptic) for name in pngs):
        return None
    if len(jsons) > 1:
        raise ValueError(
            f"{tree.locate(folder)}: expected label maps or one JSON, found {len(jsons)}: "
            f"{shorten(jsons)}; set config.data.annotations to one of them (a JSON for each image, "
            "as labelme keeps them, is not read: export them as VOC or COCO)"
        )
    return jsons[0]


def _find_images(tree: FileTree, folder: str, no_images: set[str]) -> tuple[PurePosixPath, ...]:
    """Paths of the images relative to the folder."""
    found = (name for name in tree.names(folder) if name not in no_images)
    paths, others = [], []
    for path in (PurePosixPath(name).relative_to(folder) for name in found):
        (paths if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    if others:
        logger.warning("%s: left out %s", tree.locate(folder), describe_left_out(others))
    if not paths:
        raise ValueError(
            f"{tree.locate(folder)}: expected images ({' '.join(IMAGE_SUFFIXES)}) in this folder "
            "or below, found none"
        )
    return tuple(paths)


def _check_names(folder: DataFolder) -> None:
    first_of_id: dict[str, PurePosixPath] = {}
    for path in folder.paths:
        name = example_id(path)
        first = first_of_id.setdefault(composed(name), path)
        if first is not path:
            raise ValueError(
                f"{folder.tree.locate(folder.images)}: {first} and {path} would share the label "
                f"map {name}; rename or remove one of the images"
            )
