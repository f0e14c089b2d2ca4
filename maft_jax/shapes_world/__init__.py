"""The method at work in shapes world: a tiny CLIP, its fine-tuning, the study of both."""

import pathlib

CLIP_WEIGHTS = pathlib.Path(__file__).with_name("clip.safetensors")
"""The CLIP that `python -m maft_jax.cli.train_tiny_clip` trained, in OpenAI's layout, float16."""
