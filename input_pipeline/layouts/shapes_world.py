"""Shapes world as `shapes_world.folder.write_shapes_world` writes it."""

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.index_maps import class_lookup
from input_pipeline.layouts.base import (
    LayoutSource,
    index_source,
    missing_files,
    pair_files,
    read_split,
)


def open_shapes_world(tree: FileTree, split: str) -> LayoutSource:
    """The scenes of captions.tsv, in its order; any number of them is as good as another.

    Raises MissingFiles when there are no captions, ValueError when one has no image or label map.
    """
    spec = SPECS["shapes_world"]
    captions = f"{split}/captions.tsv"
    if not tree.exists(captions):
        raise missing_files(spec, tree, {"scenes": [captions]})
    files = pair_files(
        tree,
        read_split(tree, captions),
        image=lambda name: f"{split}/images/{name}.png",
        label=lambda name: f"{split}/annotations/{name}.png",
        listed_in=captions,
    )
    lookup = class_lookup(spec.classes, spec.ignore_labels)
    return index_source(spec.name, tree, files, spec.classes.names, lookup)
