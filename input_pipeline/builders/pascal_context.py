"""TFDS builder of Pascal Context: `PascalContext(data_root=..., config="459")` or `"59"`."""

from input_pipeline.builders.published import BUILDERS

PascalContext = BUILDERS["pascal_context"]
