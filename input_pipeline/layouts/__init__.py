"""Raw data sets in the layouts people already have, each as an ExampleSource."""

import logging
from collections.abc import Sequence
from pathlib import Path

# The module rather than the class: it imports layouts.base, which runs this file first.
from input_pipeline import folder_source
from input_pipeline.class_lists import UNLESS_NAMED
from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import open_tree
from input_pipeline.layouts.base import LayoutSource, MissingFiles
from input_pipeline.subtree import only_folder

logger = logging.getLogger(__name__)


def open_dataset(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    images: str = "images",
    annotations: str = "annotations",
    classes: str | Path = "classes.txt",
    ignore_labels: Sequence[int] = UNLESS_NAMED,
) -> LayoutSource:
    """Opens a split of a data set below `root`: extracted, in its official archives, or both.

    `dataset` is a key of SPECS, or "folder" for images and label maps of one's own. A folder
    has no splits (`split` is not looked at), and only for it the keyword arguments matter. What
    lies in one folder at the top of `root` or of an archive is found there.
    Raises ValueError that says which files to put where.
    """
    if dataset == "folder":
        return folder_source.FolderSource(root, images, annotations, classes, ignore_labels)
    if dataset not in SPECS:
        raise ValueError(f"dataset {dataset!r}: expected one of {['folder', *SPECS]}")
    spec = SPECS[dataset]
    if split not in spec.splits:
        raise ValueError(f"split {split!r}: expected one of {list(spec.splits)}")
    tree = open_tree(root)
    try:
        return spec.opener(tree, split)
    except MissingFiles as missing:
        below = only_folder(tree)
        if below is None:
            raise
        try:
            source = spec.opener(below, split)
        except MissingFiles:
            raise missing from None
        logger.info("%s: reading its only folder, %s", tree.where, below.where)
        return source
