"""TFDS builder of COCO-Stuff 164k: `CocoStuff(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.published import BUILDERS

CocoStuff = BUILDERS["coco_stuff"]
