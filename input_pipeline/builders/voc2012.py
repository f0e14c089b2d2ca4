"""TFDS builder of Pascal VOC 2012: `Voc2012(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.published import BUILDERS

Voc2012 = BUILDERS["voc2012"]
