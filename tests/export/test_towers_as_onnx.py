"""Every kind of image and text tower as ONNX, in onnxruntime."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maft_jax
from maft_jax.export import onnx_program
from maft_jax.export.formats import FORMATS
from maft_jax.export.programs import image_program, text_program
from maft_jax.export.verification import verify
from maft_jax.models.adapters.content_dependent_transfer import (
    ContentDependentTransfer,
    TransferReader,
)
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapter, MaskAdapterConfig
from maft_jax.models.mask_reader import Modules

pytestmark = pytest.mark.slow

TOWERS = {
    "random:convnext_tiny-random": {"mask_pooling": "soft"},
    "random:siglip_tiny-random": {"image_size": 75},
    "random:eva02_tiny-random": {"mask_rule": "maskclippp"},
    "random:tips_tiny-random": {},
    "built-in:shapes_world": {"mask_rule": "shared_patches"},
}
FIXED = {"random:eva02_tiny-random": {"proposals": 4}}
WITH_TEXT = ("random:convnext_tiny-random", "random:siglip_tiny-random", "random:tips_tiny-random")
"""Those whose text towers differ from each other, and from that of the default tests."""


@pytest.mark.parametrize("source", TOWERS)
def test_towers_of_every_kind_are_the_same_in_onnxruntime(source, tmp_path):
    clip = maft_jax.load(source, **{"image_size": 64, **TOWERS[source]})
    rows = np.eye(3, clip.config.vision.embed_dim, dtype=np.float32)
    programs = [image_program(clip, rows, "float32").of_sizes(FIXED.get(source, {}))]
    if source in WITH_TEXT:
        programs.append(text_program(clip.config.text, clip.parameters["text"], "float32"))
    for program in programs:
        assert "batch" in program.free
        verify(program, onnx_program.opened(FORMATS["onnx"].write(program, tmp_path)))


ADAPTER = MaskAdapterConfig(width=16, num_maps=5)


@pytest.mark.parametrize(
    ("reader", "module"),
    [
        (AdapterReader(ADAPTER), MaskAdapter(ADAPTER)),
        (TransferReader("semantic"), ContentDependentTransfer("semantic")),
        (TransferReader("panoptic", "in_order"), ContentDependentTransfer("panoptic")),
    ],
    ids=["Mask-Adapter", "MAFT+", "MAFT+ panoptic"],
)
def test_modules_of_methods_are_part_of_the_program(reader, module, tmp_path):
    clip = maft_jax.load("random:convnext_tiny-random", image_size=64)
    width, draw = clip.config.vision.embed_dim, np.random.default_rng(0)
    rows, cells = jnp.zeros((1, width)), jnp.zeros((1, 1, 1, width))
    inputs = (rows, cells) if reader.adapts_text else (cells, jnp.zeros((1, 1, 1, 1)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    modules = jax.tree.map(lambda of: draw.normal(0, 0.3, of.shape).astype(np.float32), shapes)
    clip = dataclasses.replace(clip, modules=Modules(modules, reader))
    program = image_program(clip, np.eye(3, width, dtype=np.float32), "float32", 48)
    assert program.free == ("batch", "proposals")
    for name in ("onnx", "stablehlo"):
        verify(program, FORMATS[name].open(FORMATS[name].write(program, tmp_path)))


def test_rotary_positions_ask_for_a_number_of_proposals():
    clip = maft_jax.load("random:eva02_tiny-random", image_size=64)
    with pytest.raises(ValueError, match="--proposals=100"):
        onnx_program.convert(image_program(clip, None, "float32"))
