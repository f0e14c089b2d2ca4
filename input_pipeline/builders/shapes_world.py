"""TFDS builder of shapes world: `ShapesWorld(seed=0).download_and_prepare()` draws it."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.builders.base import SegmentationBuilder
from input_pipeline.dataset_specs import SPECS
from input_pipeline.shapes_world.splits import (
    NUM_TRAIN,
    NUM_VAL,
    WORLD_VERSION,
    check_counts,
    draw_split,
    encode_png,
)


class ShapesWorld(SegmentationBuilder):
    """Scenes of shapes world, those of `write_shapes_world`, with the feature `caption` besides.

    Nothing is read: `seed`, `num_train` and `num_val` say what is drawn, and each
    choice of them has a folder of its own below `data_dir`. Other arguments are those of TFDS.
    Raises ValueError for impossible counts, and for a `config` of other scenes; there is no
    `data_root`.
    """

    VERSION = tfds.core.Version(f"{WORLD_VERSION}.0.0")
    DESCRIPTION = (
        "Drawn pictures of 128 x 128 pixels: one or two of 6 textured backgrounds, and up to three "
        "objects of 6 patterns in 6 colours that may overlap. Every pixel is labelled."
    )
    HOMEPAGE = "https://arxiv.org/abs/2310.00240"
    CITATION = ""

    def __init__(
        self,
        *,
        seed: int = 0,
        num_train: int = NUM_TRAIN,
        num_val: int = NUM_VAL,
        config: str | tfds.core.BuilderConfig | None = None,
        **kwargs: object,
    ):
        check_counts(num_train, num_val)
        drawn = tfds.core.BuilderConfig(
            name=f"seed_{seed}_train_{num_train}_val_{num_val}",
            description=f"{num_train} and {num_val} scenes of the world of seed {seed}",
        )
        wanted = config.name if isinstance(config, tfds.core.BuilderConfig) else config
        if wanted not in (None, drawn.name):
            raise ValueError(
                f"config={wanted!r}: expected {drawn.name!r}, which follows from seed, num_train "
                "and num_val; leave config out"
            )
        self._seed, self._counts = seed, {"train": num_train, "val": num_val}
        super().__init__(data_root=None, config=drawn, **kwargs)
        self._arguments = {"seed": seed, "num_train": num_train, "num_val": num_val, **kwargs}

    def _info(self) -> tfds.core.DatasetInfo:
        names = SPECS[self.dataset].classes.names
        return self._describe(names, np.uint8, caption=tfds.features.Text())

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # nothing is downloaded
        return {
            tfds.Split.TRAIN: self._generate_examples("train"),
            tfds.Split.VALIDATION: self._generate_examples("val"),
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for drawn in draw_split(self._seed, split, self._counts[split]):
            features = {
                "image": encode_png(drawn.scene.image),
                "label_map": drawn.scene.label_map[..., None],
                "image_id": drawn.example_id,
                "caption": drawn.caption,
            }
            yield drawn.example_id, features
