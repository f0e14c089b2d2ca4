"""TFDS builder of ADE20K-Full: `Ade20kFull(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.base import SegmentationBuilder, where_to_put_files


class Ade20kFull(SegmentationBuilder):
    """ADE20K, release 2021_17_01, with the 847 classes used for evaluation."""

    DESCRIPTION = (
        "Scenes of ADE20K (release 2021_17_01) with the 847 classes that open-vocabulary models "
        "are evaluated on, as 16-bit ids 0 to 846; rarer objects are unlabelled."
    )
    HOMEPAGE = "https://groups.csail.mit.edu/vision/datasets/ADE20K/"
    CITATION = """@article{zhou2019semantic,
  title = {Semantic Understanding of Scenes through the {ADE20K} Dataset},
  author = {Zhou, Bolei and Zhao, Hang and Puig, Xavier and Xiao, Tete and Fidler, Sanja and
            Barriuso, Adela and Torralba, Antonio},
  journal = {International Journal of Computer Vision},
  volume = {127},
  year = {2019}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = where_to_put_files("ade20k_full")
