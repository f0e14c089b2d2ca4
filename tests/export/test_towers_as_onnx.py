"""Every kind of image and text tower as ONNX, in onnxruntime."""

import numpy as np
import pytest

import maft_jax
from maft_jax.export import onnx_program
from maft_jax.export.formats import FORMATS
from maft_jax.export.programs import image_program, text_program
from maft_jax.export.verification import verify

pytestmark = pytest.mark.slow

SIZES = [
    "convnext_tiny-random",
    "siglip_tiny-random",
    "eva02_tiny-random",
    "tips_tiny-random",
]
FIXED = {"eva02_tiny-random": {"proposals": 4}}


@pytest.mark.parametrize("size", SIZES)
def test_towers_of_every_kind_are_the_same_in_onnxruntime(size, tmp_path):
    clip = maft_jax.load(f"random:{size}", image_size=64)
    rows = np.eye(3, clip.config.vision.embed_dim, dtype=np.float32)
    text = text_program(clip.config.text, clip.parameters["text"], "float32")
    for program in (image_program(clip, rows, "float32"), text):
        program = program.of_sizes(FIXED.get(size, {}))
        assert "batch" in program.free
        verify(program, onnx_program.opened(FORMATS["onnx"].write(program, tmp_path)))


@pytest.mark.parametrize("rule", ["shared_patches", "maskclippp"])
def test_every_rule_of_masks_is_the_same_in_onnxruntime(rule, tmp_path):
    clip = maft_jax.load("built-in:shapes_world", image_size=64, mask_rule=rule)
    program = image_program(clip, None, "float32")
    verify(program, onnx_program.opened(FORMATS["onnx"].write(program, tmp_path)))


def test_rotary_positions_ask_for_a_number_of_proposals():
    clip = maft_jax.load("random:eva02_tiny-random", image_size=64)
    with pytest.raises(ValueError, match="--proposals=100"):
        onnx_program.convert(image_program(clip, None, "float32"))
