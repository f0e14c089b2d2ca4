"""A data set kept as a folder of images beside a folder of label maps."""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from input_pipeline.class_lists import BUILT_IN, ClassList, load_class_list, parse_class_list
from input_pipeline.file_names import composed, shorten
from input_pipeline.file_trees import FileTree, open_tree
from input_pipeline.label_maps.index_maps import IndexMaps, class_lookup
from input_pipeline.layouts.base import (
    IMAGE_SUFFIXES,
    ExampleFiles,
    LayoutSource,
    describe_left_out,
)

logger = logging.getLogger(__name__)


class FolderSource(LayoutSource):
    """Examples of `root/images/**`, labelled by `root/annotations/<same path>.png`.

    `root` may be an archive, and any of its folders may be inside an archive in it. `classes` is a
    file (relative to `root` or absolute) or the name of a built-in class list. `ignore_labels` are
    the values of unlabelled pixels in the label maps: 255 in most data sets, 0 in ADE20K, 0 and
    255 in VOC without its background class. Files are decoded on access only; the constructor
    checks what names and class lists can tell.
    """

    def __init__(
        self,
        root: str | Path,
        images: str = "images",
        annotations: str = "annotations",
        classes: str | Path = "classes.txt",
        ignore_labels: Sequence[int] = (255,),
    ):
        tree = open_tree(root)
        images, annotations = _tidy(images), _tidy(annotations)
        if top := _single_folder_with(tree, images):
            images, annotations = f"{top}/{images}", f"{top}/{annotations}"
            classes = f"{top}/{classes}" if tree.exists(f"{top}/{classes}") else classes
        for folder in (images, annotations):
            if not tree.exists(folder):
                raise ValueError(
                    f"{tree.locate(folder)}: expected a folder, there is none; looked in "
                    f"{tree.describe()}"
                )
        class_list = _load_classes(tree, classes, tuple(ignore_labels))
        if not class_list.label_values:
            raise ValueError(
                f"{tree.locate(str(classes))}: the class list has colours and no label values, "
                "which label maps of indices need; write 'integer<TAB>name' lines, where the "
                f"integer is the value in the label maps, of {', '.join(class_list.names[:3])}, ..."
            )
        files = _match_labels(tree, _find_images(tree, images), images, annotations)
        labels = IndexMaps(
            tree,
            [entry.label for entry in files],
            class_list.names,
            class_lookup(class_list, ignore_labels),
            advice=(
                "add the missing classes to the class list ('value<TAB>name' lines), or set "
                "ignore_labels to the values of unlabelled pixels"
            ),
        )
        super().__init__(
            "folder",
            tree,
            [entry.example_id for entry in files],
            [entry.image for entry in files],
            class_list.names,
            labels,
        )


def _tidy(folder: str) -> str:
    """The folder without './' and slashes at the end; '' for the root itself."""
    path = PurePosixPath(folder)
    return path.as_posix() if path.parts else ""


def _single_folder_with(tree: FileTree, images: str) -> str | None:
    """The one folder at the top in which everything lies, as zip programs pack a folder."""
    if not images or images.startswith("/") or tree.exists(images):
        return None
    tops = {name.partition("/")[0] for name in tree.names() if "/" in name} - {"__MACOSX"}
    top = tops.pop() if len(tops) == 1 else None
    if top is None or not tree.exists(f"{top}/{images}"):
        return None
    logger.info("%s: reading its only folder, %s", tree.where, top)
    return top


def _find_images(tree: FileTree, folder: str) -> list[PurePosixPath]:
    """Paths of the images relative to the folder."""
    found = (PurePosixPath(name).relative_to(folder) for name in tree.names(folder))
    paths, others = [], []
    for path in found:
        (paths if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    if others:
        logger.warning("%s: left out %s", tree.locate(folder), describe_left_out(others))
    if not paths:
        raise ValueError(
            f"{tree.locate(folder)}: expected images ({' '.join(IMAGE_SUFFIXES)}) in this folder "
            "or below, found none"
        )
    return paths


def _match_labels(
    tree: FileTree, paths: list[PurePosixPath], images: str, annotations: str
) -> list[ExampleFiles]:
    present = {composed(name): name for name in tree.names(annotations)}
    first_of_id: dict[str, PurePosixPath] = {}
    files, missing = [], []
    for path in paths:
        example_id = path.with_suffix("").as_posix()
        label = PurePosixPath(annotations, f"{example_id}.png").as_posix()
        label = present.get(composed(label), label)
        first = first_of_id.setdefault(composed(example_id), path)
        if first is not path:
            raise ValueError(
                f"{tree.locate(images)}: {first} and {path} would share the label map "
                f"{example_id}.png; rename or remove one of the images"
            )
        files.append(ExampleFiles(example_id, PurePosixPath(images, path).as_posix(), label))
        if composed(label) not in present:
            missing.append(tree.locate(label))
    if missing:
        raise ValueError(
            f"{tree.locate(images)}: {len(missing)} of {len(files)} images have no label map. "
            f"Expected, but missing: {shorten(missing)}. Add the label maps or remove the images"
        )
    _report_labels_without_image(tree, files, set(present.values()), annotations)
    return files


def _report_labels_without_image(
    tree: FileTree, files: list[ExampleFiles], present: set[str], annotations: str
) -> None:
    used = {entry.label for entry in files} | {entry.image for entry in files}
    unused = sorted(name for name in present - used if name.endswith(".png"))
    if unused:
        logger.warning(
            "%s: %d label maps have no image and are left out: %s",
            tree.locate(annotations),
            len(unused),
            shorten(unused),
        )


def _load_classes(tree: FileTree, classes: str | Path, ignore_labels: tuple[int, ...]) -> ClassList:
    in_tree = str(classes)
    if tree.exists(in_tree):
        return parse_class_list(tree.read(in_tree), tree.locate(in_tree), ignore_labels)
    known = in_tree in BUILT_IN or Path(classes).is_absolute()
    return load_class_list(classes if known else tree.locate(in_tree), ignore_labels)
