"""Raw data sets in the layouts people already have, each as an ExampleSource."""

from collections.abc import Callable, Sequence
from pathlib import Path

# The module rather than the class: it imports layouts.base, which runs this file first.
from input_pipeline import folder_source
from input_pipeline.dataset_specs import SPLITS
from input_pipeline.file_trees import FileTree, open_tree
from input_pipeline.layouts.ade20k import open_ade20k_150
from input_pipeline.layouts.ade20k_full import open_ade20k_full
from input_pipeline.layouts.base import LayoutSource
from input_pipeline.layouts.coco_stuff import open_coco_stuff
from input_pipeline.layouts.pascal_context import open_pascal_context_59, open_pascal_context_459
from input_pipeline.layouts.shapes_world import open_shapes_world
from input_pipeline.layouts.voc2012 import open_voc2012

LAYOUTS: dict[str, Callable[[FileTree, str], LayoutSource]] = {
    "coco_stuff": open_coco_stuff,
    "voc2012": open_voc2012,
    "ade20k_150": open_ade20k_150,
    "ade20k_full": open_ade20k_full,
    "pascal_context_59": open_pascal_context_59,
    "pascal_context_459": open_pascal_context_459,
    "shapes_world": open_shapes_world,
}


def open_dataset(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    images: str = "images",
    annotations: str = "annotations",
    classes: str | Path = "classes.txt",
    ignore_labels: Sequence[int] = (255,),
) -> LayoutSource:
    """Opens a split of a data set below `root`: extracted, in its official archives, or both.

    `dataset` is a key of LAYOUTS, or "folder" for images and label maps of one's own. A folder
    has no splits (`split` is not looked at), and only for it the keyword arguments matter.
    Raises ValueError that says which files to put where.
    """
    if dataset == "folder":
        return folder_source.FolderSource(root, images, annotations, classes, ignore_labels)
    if dataset not in LAYOUTS:
        raise ValueError(f"dataset {dataset!r}: expected one of {['folder', *LAYOUTS]}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {list(SPLITS)}")
    return LAYOUTS[dataset](open_tree(root), split)
