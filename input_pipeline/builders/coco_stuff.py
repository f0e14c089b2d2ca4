"""TFDS builder of COCO-Stuff 164k: `CocoStuff(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.base import SegmentationBuilder, where_to_put_files


class CocoStuff(SegmentationBuilder):
    """COCO-Stuff 164k: the photos of COCO 2017 with 80 things and 91 kinds of stuff."""

    DESCRIPTION = (
        "All photos of COCO 2017 with a label for nearly every pixel: 80 classes of things and 91 "
        "of stuff, as contiguous ids 0 to 170."
    )
    HOMEPAGE = "https://github.com/nightrome/cocostuff"
    CITATION = """@inproceedings{caesar2018cocostuff,
  title = {{COCO-Stuff}: Thing and Stuff Classes in Context},
  author = {Caesar, Holger and Uijlings, Jasper and Ferrari, Vittorio},
  booktitle = {CVPR},
  year = {2018}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = where_to_put_files("coco_stuff")
