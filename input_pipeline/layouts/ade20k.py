"""ADE20K-150, the scene parsing benchmark (ADEChallengeData2016)."""

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

_ROOTS = ("ADEChallengeData2016/", "")
_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}
_CONTIGUOUS_IGNORE = (255,)


def open_ade20k_150(tree: FileTree, split: str) -> LayoutSource:
    """The examples of a split that have a label map, in order of their names.

    Raises MissingFiles when there are no images or no label maps.
    """
    spec = SPECS["ade20k_150"]
    part = _FOLDER_OF_SPLIT[split]
    folders = {
        name: [f"{root}{name}/{part}" for root in _ROOTS]
        for name in ("images", "annotations", "annotations_detectron2")
    }
    images = first_with(tree, folders["images"], ".jpg")
    official = first_with(tree, folders["annotations"], ".png")
    labels = official or first_with(tree, folders["annotations_detectron2"], ".png")
    if images is None or labels is None:
        wanted, suffix = ("images", "jpg") if images is None else ("annotations", "png")
        places = [f"{folder}/*.{suffix}" for folder in folders[wanted]]
        raise missing_files(spec, tree, {"images and label maps": places})
    files = pair_files(
        tree,
        stems(tree, labels, ".png"),
        image=lambda name: f"{images}/{name}.jpg",
        label=lambda name: f"{labels}/{name}.png",
        listed_in=f"{labels}/*.png",
    )
    report_count(spec, split, len(files))
    if official:
        lookup = class_lookup(spec.classes, spec.ignore_labels)
    else:
        lookup = class_lookup(contiguous(spec.classes), _CONTIGUOUS_IGNORE)
    return index_source(spec.name, tree, files, spec.classes.names, lookup)
