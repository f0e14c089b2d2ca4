"""COCO-Stuff 164k: COCO's 2017 images with the label maps of stuffthingmaps."""

from dataclasses import dataclass

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.layouts.base import (
    LayoutSource,
    contiguous,
    first_with,
    index_source,
    missing_files,
    pair_files,
    report_count,
    stems,
)

_ROOTS = ("", "coco/", "coco_stuff164k/")
_IMAGE_FOLDERS = ("images/{split}2017", "{split}2017")
# The official archive has the folders train2017 and val2017 itself, beside images of these names.
_RAW_FOLDERS = (
    "stuffthingmaps/{split}2017",
    "annotations/stuffthingmaps/{split}2017",
    "stuffthingmaps_trainval2017/{split}2017",
    "annotations/{split}2017",
    "{split}2017",
)
_CONTIGUOUS_FOLDER = "stuffthingmaps_detectron2/{split}2017"
_TRAIN_IDS = "_labelTrainIds"
_CONVERTED = (_TRAIN_IDS, "_instanceTrainIds")


@dataclass(frozen=True)
class _Labels:
    folder: str
    suffix: str
    example_ids: list[str]
    is_contiguous: bool


def open_coco_stuff(tree: FileTree, split: str) -> LayoutSource:
    """The examples of a split that have a label map, in order of their names.

    Raises MissingFiles when there are no images or no label maps.
    """
    spec = SPECS["coco_stuff"]
    image_folder = first_with(tree, _places(_IMAGE_FOLDERS, split), ".jpg")
    labels = _find_labels(tree, split)
    missing = {}
    if image_folder is None:
        missing[f"{split} images"] = [f"{folder}/*.jpg" for folder in _IMAGE_FOLDERS]
    if labels is None:
        missing["labels"] = [f"{folder}/*.png" for folder in (*_RAW_FOLDERS, _CONTIGUOUS_FOLDER)]
    if missing:
        parts = {
            part: [at.format(split=split) for at in places] for part, places in missing.items()
        }
        raise missing_files(spec, tree, parts)
    files = pair_files(
        tree,
        labels.example_ids,
        image=lambda name: f"{image_folder}/{name}.jpg",
        label=lambda name: f"{labels.folder}/{name}{labels.suffix}",
        listed_in=f"{labels.folder}/*{labels.suffix}",
    )
    report_count(spec, split, len(files))
    classes = contiguous(spec.classes) if labels.is_contiguous else spec.classes
    lookup = class_lookup(classes, spec.ignore_labels)
    return index_source(spec.name, tree, files, classes.names, lookup)


def _places(patterns: tuple[str, ...], split: str) -> list[str]:
    return [root + pattern.format(split=split) for root in _ROOTS for pattern in patterns]


def _find_labels(tree: FileTree, split: str) -> _Labels | None:
    """Raw label maps before converted ones."""
    train_ids = None
    for folder in _places(_RAW_FOLDERS, split):
        names = stems(tree, folder, ".png")
        if raw := [name for name in names if not name.endswith(_CONVERTED)]:
            return _Labels(folder, ".png", raw, is_contiguous=False)
        if names and train_ids is None:
            suffix = f"{_TRAIN_IDS}.png"
            train_ids = _Labels(folder, suffix, stems(tree, folder, suffix), is_contiguous=True)
    for folder in _places((_CONTIGUOUS_FOLDER,), split):
        if names := stems(tree, folder, ".png"):
            return _Labels(folder, ".png", names, is_contiguous=True)
    return train_ids
