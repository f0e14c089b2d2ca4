"""TFDS builder of ADE20K-150: `Ade20k150(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.base import SegmentationBuilder, where_to_put_files


class Ade20k150(SegmentationBuilder):
    """ADE20K as the scene parsing challenge of 2016 prepared it, with 150 classes."""

    name = "ade20k_150"
    DESCRIPTION = (
        "Scenes of ADE20K with the 150 classes of the MIT scene parsing challenge, as ids 0 to "
        "149; everything else is unlabelled."
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
    MANUAL_DOWNLOAD_INSTRUCTIONS = where_to_put_files("ade20k_150")
