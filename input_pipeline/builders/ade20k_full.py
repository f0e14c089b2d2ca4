"""TFDS builder of ADE20K-Full: `Ade20kFull(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.published import BUILDERS

Ade20kFull = BUILDERS["ade20k_full"]
