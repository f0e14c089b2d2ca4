"""TFDS builder of Pascal Context: `PascalContext(data_root=..., config="459")` or `"59"`."""

import tensorflow_datasets as tfds

from input_pipeline.builders.base import SegmentationBuilder, where_to_put_files


class PascalContext(SegmentationBuilder):
    """Pascal Context with its 59 frequent classes (config "59") or with all 459 ("459")."""

    BUILDER_CONFIGS = [  # noqa: RUF012  TFDS wants a list
        tfds.core.BuilderConfig(name="59", description="The 59 frequent classes, 8-bit labels"),
        tfds.core.BuilderConfig(name="459", description="All 459 classes, 16-bit labels"),
    ]
    DESCRIPTION = (
        "The photos of Pascal VOC 2010 with every pixel labelled, stuff included; classes outside "
        "the chosen vocabulary are unlabelled."
    )
    HOMEPAGE = "https://cs.stanford.edu/~roozbeh/pascal-context/"
    CITATION = """@inproceedings{mottaghi2014role,
  title = {The Role of Context for Object Detection and Semantic Segmentation in the Wild},
  author = {Mottaghi, Roozbeh and Chen, Xianjie and Liu, Xiaobai and Cho, Nam-Gyu and Lee,
            Seong-Whan and Fidler, Sanja and Urtasun, Raquel and Yuille, Alan},
  booktitle = {CVPR},
  year = {2014}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = where_to_put_files("pascal_context_459")

    @property
    def dataset(self) -> str:
        return f"pascal_context_{self.builder_config.name}"
