"""What all builders share: they write the examples of `open_dataset`, in its order.

Examples have the features

    image      the encoded image, byte for byte as it came
    label_map  PNG of class ids at the image's size, 8 bits (255 unlabelled) or 16 (65535)
    image_id   text

and those that a builder adds, and `builder.info.metadata` has `class_names` and `ignore_label`.
TensorFlow decodes an image as it is stored. Where photos may be CMYK or turned by EXIF, skip its
decoding and use ours, which is what the label maps fit:

    dataset = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    pixels = input_pipeline.image_files.read_image(example["image"].numpy())
"""

import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import IGNORE, ExampleSource
from input_pipeline.layouts import open_dataset

_SPLITS = {"train": tfds.Split.TRAIN, "val": tfds.Split.VALIDATION}
_MOST_CLASSES_OF_8_BITS = 255


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of images with label maps; a subclass says which, and where the set comes from.

    `data_root` is the folder with the files as they were downloaded, archives or extracted;
    without it they are expected in TFDS's folder for manual downloads. It is not needed to read
    what was prepared. Other arguments are those of TFDS (`data_dir`, `config`, ...).
    Preparing raises the ValueErrors of `open_dataset`.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    CITATION: ClassVar[str]

    def __init__(self, *, data_root: str | os.PathLike | None = None, **kwargs: object):
        self._data_root = data_root
        self._arguments = {"data_root": data_root, **kwargs}
        super().__init__(**kwargs)

    def __getstate__(self) -> dict[str, object]:
        return self._arguments

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)

    @property
    def dataset(self) -> str:
        """Name of the data set for `open_dataset`: the builder's, and its configuration's."""
        return f"{self.name}_{self.builder_config.name}" if self.BUILDER_CONFIGS else self.name

    def _info(self) -> tfds.core.DatasetInfo:
        names = SPECS[self.dataset].classes.names
        return self._describe(
            names, np.uint8 if len(names) <= _MOST_CLASSES_OF_8_BITS else np.uint16
        )

    def _describe(
        self,
        class_names: Sequence[str],
        dtype: type,
        **more_features: tfds.features.FeatureConnector,
    ) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label_map": tfds.features.Image(
                shape=(None, None, 1), dtype=dtype, encoding_format="png"
            ),
            "image_id": tfds.features.Text(),
            **more_features,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                class_names=list(class_names), ignore_label=int(np.iinfo(dtype).max)
            ),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict]]]:
        root = self._root(dl_manager)
        return {
            name: self._generate_examples(open_dataset(self.dataset, root, split))
            for split, name in _SPLITS.items()
        }

    def _root(self, dl_manager: tfds.download.DownloadManager) -> str:
        return os.fspath(dl_manager.manual_dir if self._data_root is None else self._data_root)

    def _generate_examples(self, source: ExampleSource) -> Iterator[tuple[str, dict]]:
        ignore_label = self.info.metadata["ignore_label"]
        for index, example_id in enumerate(source.example_ids):
            label_map = source[index].label_map
            values = np.where(label_map == IGNORE, ignore_label, label_map)
            features = {
                "image": source.image_bytes(index),
                "label_map": values.astype(np.min_scalar_type(ignore_label))[..., None],
                "image_id": example_id,
            }
            yield example_id, features
