"""TFDS builder of ADE20K-150: `Ade20k150(data_root=...).download_and_prepare()`."""

from input_pipeline.builders.published import BUILDERS

Ade20k150 = BUILDERS["ade20k_150"]
