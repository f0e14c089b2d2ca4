"""TFDS builder of one's own images and label maps.

    Folder(data_root="/data/mine", ignore_labels=(0,)).download_and_prepare()

The layout is that of `dataset = "folder"`: `images`, `annotations` and `classes` below the root, of
any kind in docs/label_maps.md.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.builders.base import SegmentationBuilder
from input_pipeline.class_lists import UNLESS_NAMED
from input_pipeline.layouts import open_dataset


class Folder(SegmentationBuilder):
    """A folder of images beside a folder of PNG label maps; one split, "train".

    Label maps have 16 bits whatever the number of classes.
    """

    DESCRIPTION = "Images and label maps of a folder."
    HOMEPAGE = "https://arxiv.org/abs/2310.00240"
    CITATION = ""
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Pass `data_root`, or put the folders `images` and `annotations` and the file "
        "`classes.txt` (one class per line) here."
    )

    def __init__(
        self,
        *,
        data_root: str | os.PathLike | None = None,
        images: str = "images",
        annotations: str = "annotations",
        classes: str = "classes.txt",
        ignore_labels: Sequence[int] = UNLESS_NAMED,
        **kwargs: object,
    ):
        self._layout = {
            "images": images,
            "annotations": annotations,
            "classes": classes,
            "ignore_labels": tuple(ignore_labels),
        }
        super().__init__(data_root=data_root, **kwargs)
        self._arguments |= self._layout

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe((), np.uint16)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict]]]:
        source = open_dataset("folder", self._root(dl_manager), "train", **self._layout)
        self.info.metadata["class_names"] = list(source.class_names)
        return {tfds.Split.TRAIN: self._generate_examples(source)}
