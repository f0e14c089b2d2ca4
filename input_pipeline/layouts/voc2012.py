"""Pascal VOC 2012 segmentation, 20 classes without background; SBD's label maps where present."""

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.layouts.base import (
    LayoutSource,
    first_with,
    index_source,
    missing_files,
    pair_files,
    read_split,
    report_count,
    stems,
)

_ROOTS = ("VOCdevkit/VOC2012/", "VOC2012/", "")
_LISTS = "ImageSets/Segmentation/"
_PLAIN, _AUGMENTED = "SegmentationClass", "SegmentationClassAug"


def open_voc2012(tree: FileTree, split: str) -> LayoutSource:
    """The examples of train.txt or val.txt, in the order of that file.

    Where there is a folder SegmentationClassAug, training takes its label maps: those of
    trainaug.txt, or without this file all but those of val.txt.
    Raises MissingFiles when images, label maps or lists are not there.
    """
    spec = SPECS["voc2012"]
    root = next((root for root in _ROOTS if tree.exists(f"{root}JPEGImages")), None)
    if root is None:
        places = [f"{root}JPEGImages/*.jpg" for root in _ROOTS]
        raise missing_files(spec, tree, {"images and label maps": places})
    # SegmentationClassAug comes as an archive of its own, which may lie outside VOCdevkit.
    augmented = first_with(tree, (f"{root}{_AUGMENTED}", _AUGMENTED), ".png")
    if split == "train" and augmented:
        labels, listed_in, example_ids = augmented, *_augmented_ids(tree, root, augmented)
    else:
        labels, listed_in = f"{root}{_PLAIN}", f"{root}{_LISTS}{split}.txt"
        for path in (labels, listed_in):
            if not tree.exists(path):
                raise missing_files(spec, tree, {"images and label maps": [path]})
        example_ids = read_split(tree, listed_in)
    files = pair_files(
        tree,
        example_ids,
        image=lambda name: f"{root}JPEGImages/{name}.jpg",
        label=lambda name: f"{labels}/{name}.png",
        listed_in=listed_in,
    )
    report_count(spec, split, len(files))
    lookup = class_lookup(spec.classes, spec.ignore_labels)
    return index_source(spec.name, tree, files, spec.classes.names, lookup)


def _augmented_ids(tree: FileTree, root: str, labels: str) -> tuple[str, list[str]]:
    """Where the augmented training set is listed, and its ids."""
    for name in ("trainaug.txt", "train_aug.txt"):
        if tree.exists(path := f"{root}{_LISTS}{name}"):
            return path, read_split(tree, path)
    val_list = f"{root}{_LISTS}val.txt"
    if not tree.exists(val_list):
        raise missing_files(SPECS["voc2012"], tree, {"images and label maps": [val_list]})
    val = set(read_split(tree, val_list))
    ids = [name for name in stems(tree, labels, ".png") if name not in val]
    return f"{labels}/*.png less {val_list}", ids
