"""Evaluation, prediction, precompute's teacher and the text tower compile for GPUs."""

import jax
import jax.numpy as jnp
import pytest

from input_pipeline.eval_pipeline import EvalGeometry, make_eval_batch
from maft_jax.benchmarks.drawn_data import draw_example
from maft_jax.config.sections import ModelConfig
from maft_jax.evaluators.confusion import confusion_matrix
from maft_jax.evaluators.evaluation import make_segmenter
from maft_jax.inference.clip import Clip
from maft_jax.inference.segmenter import InferenceSpec, Segmenter
from maft_jax.models.clip import random_parameters
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.text.clip_text import TextTransformer
from maft_jax.resolved_config import resolve
from maft_jax.runtime import sharding
from maft_jax.training.step_setup import make_step_setup
from maft_jax.training.teacher import teacher_program
from tests.cuda.gpu_programs import FORWARD, compile_program, gpu_mesh
from tests.cuda.small_towers import LAYERS, START, small_step

pytestmark = pytest.mark.cuda

NUM_CLASSES = 20


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """Pixels are labelled in tiles of a size that goes by the devices of this process."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def shapes(tree, where):
    """Shapes of arrays or of shapes; `where` is one sharding, or a tree of them."""
    where = where if isinstance(where, dict) else jax.tree.map(lambda _: where, tree)

    def shape(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, where)


def tower_and_text(clip, mesh):
    visual = jax.eval_shape(lambda: random_parameters(clip)["visual"])
    text = jax.ShapeDtypeStruct((NUM_CLASSES, clip.vision.embed_dim), jnp.float32)
    return (
        shapes(visual, sharding.tree_shardings(visual, mesh, clip.vision.sharding_rules)),
        shapes(text, sharding.replicated(mesh)),
    )


def photographs(config, mesh, count):
    example = draw_example(config)
    batch = make_eval_batch(example, config.proposals.num_proposals, EvalGeometry())
    rows = {key: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for key, x in batch.items()}
    return shapes(rows, sharding.batch_sharding(mesh))


def compile_segmenter(segmenter, visual, text, batch):
    """From photographs to counts of pixels."""

    def label(visual, text, batch):
        probabilities = segmenter.class_probabilities(visual, text, batch)
        found = segmenter.label_maps(probabilities, batch)
        return found, confusion_matrix(found.label_map, batch["label_map"], NUM_CLASSES)

    return compile_program(jax.jit(label).lower(visual, text, batch))


def test_evaluation():
    devices = 8
    config, clip = small_step("ViT-B-16", devices)
    mesh = gpu_mesh("h100", devices)
    segmenter = make_segmenter(resolve(config, clip, None, mesh), clip, mesh)
    batch = photographs(config, mesh, devices)
    program = compile_segmenter(segmenter, *tower_and_text(clip, mesh), batch)
    assert program.cudnn_calls == {FORWARD: LAYERS - 1}
    assert program.largest_gather == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prediction(dtype):
    config, clip = small_step("ViT-B-16", 1)
    mesh = gpu_mesh()
    model = ModelConfig(compute_dtype=dtype, mask_start_layer=START)
    encoder = make_encoder(model, clip.vision, mesh, logit_scale=100.0)
    segmenter = Segmenter(InferenceSpec(encoder, (480, 480)))
    batch = photographs(config, mesh, 1)
    expected = {} if dtype == "float32" else {FORWARD: LAYERS - 1}
    program = compile_segmenter(segmenter, *tower_and_text(clip, mesh), batch)
    assert program.cudnn_calls == expected


def test_facade(monkeypatch):
    _, clip = small_step("ViT-B-16", 1)
    mesh = gpu_mesh()
    monkeypatch.setattr("maft_jax.inference.clip.one_device_mesh", lambda: mesh)

    def encode(visual, images, masks):
        encoder = Clip(clip, {"visual": visual}, START, "bfloat16")
        return encoder.encode_image(images), encoder.encode_proposals(images, masks)

    visual, _ = tower_and_text(clip, mesh)
    arrays = {
        "images": jax.ShapeDtypeStruct((1, 480, 480, 3), jnp.float32),
        "masks": jax.ShapeDtypeStruct((1, 7, 120, 120), jnp.float32),
    }
    arrays = shapes(arrays, sharding.replicated(mesh))
    program = compile_program(jax.jit(encode).lower(visual, **arrays))
    assert program.cudnn_calls == {FORWARD: 2 * (LAYERS - 1)}


def test_teacher_of_precompute():
    config, clip = small_step("ViT-B-16", 16)
    mesh = gpu_mesh("h100", 8)
    spec = make_step_setup(config, clip.vision, mesh).objective
    visual, text = tower_and_text(clip, mesh)
    images = jax.ShapeDtypeStruct((16, 640, 640, 3), jnp.uint8)
    program = compile_program(teacher_program(spec, visual, mesh).lower(visual, text, images))
    assert program.cudnn_calls == {FORWARD: LAYERS - 1}
    assert program.collective_bytes == {"all-gather": 4 * 16 * NUM_CLASSES}


def test_text_tower():
    _, clip = small_step("ViT-B-16", 1)
    mesh = gpu_mesh()
    tokens = jax.ShapeDtypeStruct((64, clip.text.context_length), jnp.int32)
    arrays = {
        "params": jax.eval_shape(lambda: random_parameters(clip)["text"]),
        "tokens": tokens,
    }
    arrays = shapes(arrays, sharding.replicated(mesh))

    def encode(params, tokens):
        return TextTransformer(clip.text, jnp.float32).apply({"params": params}, tokens)

    assert not compile_program(jax.jit(encode).lower(**arrays)).cudnn_calls
