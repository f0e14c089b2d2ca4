"""TFDS builder of Pascal VOC 2012: `Voc2012(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.base import SegmentationBuilder, where_to_put_files


class Voc2012(SegmentationBuilder):
    """Pascal VOC 2012 segmentation; background and object borders are unlabelled."""

    DESCRIPTION = (
        "The segmentation images of Pascal VOC 2012 with its 20 classes as ids 0 to 19. Background "
        "and the borders of objects are unlabelled. Trains on SegmentationClassAug where it is "
        "present."
    )
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    CITATION = """@article{everingham2015pascal,
  title = {The {Pascal} Visual Object Classes Challenge: A Retrospective},
  author = {Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I.
            and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume = {111},
  year = {2015}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = where_to_put_files("voc2012")
