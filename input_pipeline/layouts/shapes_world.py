"""Shapes world as `shapes_world.folder.write_shapes_world` writes it."""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.dataset_specs import SPECS
from input_pipeline.file_trees import FileTree
from input_pipeline.label_maps.index_maps import IndexMaps, class_lookup
from input_pipeline.layouts.base import (
    ExampleFiles,
    LayoutSource,
    missing_files,
    pair_files,
    read_split,
)
from input_pipeline.shapes_world.scenes import Scene, draw_scene

WORLD = "world.json"


class ShapesWorldSource(LayoutSource):
    """The label maps of files, beside which `labels` gives the objects of the scene.

    Examples have none: their proposals from labels are of classes, as they always were. No file has
    them either, so a scene is drawn again for its objects.
    """

    def __init__(self, tree: FileTree, files: Sequence[ExampleFiles]):
        spec = SPECS["shapes_world"]
        names, lookup = spec.classes.names, class_lookup(spec.classes, spec.ignore_labels)
        label_maps = IndexMaps(tree, [entry.label for entry in files], names, lookup)
        examples = [entry.example_id for entry in files]
        super().__init__(
            spec.name, tree, examples, [entry.image for entry in files], names, label_maps
        )

    def labels(self, index: int) -> tuple[Int32[np.ndarray, "h w"], Int32[np.ndarray, "h w"]]:
        """Class ids or IGNORE, and numbers of objects from 1, the hindmost first.

        Raises:
            ValueError: the scene is not that of its label map: world.json is missing or another
                world's, or the label map was changed.
        """
        label_map, _ = super().labels(index)
        scene = self._draw(index)
        if scene is None or not np.array_equal(scene.label_map, label_map):
            raise ValueError(
                f"{self.label_place(index)}: expected the label map of the scene that {WORLD} "
                "beside it names, whose objects are drawn again; write the world again with "
                "input_pipeline.shapes_world.folder.write_shapes_world"
            )
        return label_map, scene.instance_map.astype(np.int32)

    def _draw(self, index: int) -> Scene | None:
        if not self._tree.exists(WORLD):
            return None
        seed = json.loads(self._tree.read(WORLD))["seed"]
        return draw_scene(seed, int(self.example_ids[index]))


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
    return ShapesWorldSource(tree, files)
