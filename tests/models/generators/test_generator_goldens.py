"""Networks against the official code, part by part."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.convert.generators import open_generator
from maft_jax.convert.generators_official import rules_of
from maft_jax.convert.generators_transformers import rules_of as transformers_rules_of
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.maskformer import MaskFormerConfig
from maft_jax.models.generators.predictions import mask_products
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig, TextInteraction
from maft_jax.models.resize import resize
from tests.golden_files import GOLDEN, golden
from tests.in_memory_weights import load_state_dict, to_ours


def close(found, expected, tolerance=5e-6):
    """Within `tolerance` of the largest entry."""
    scale = np.abs(expected).max()
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=tolerance)


def channels_last(x):
    return np.moveaxis(np.asarray(x, np.float32), 1, -1)


def golden_images(arrays):
    image = jax.device_put(arrays["image_uint8"])
    return normalised(image, jnp.array([image.shape[1:3]] * len(image)))


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """The architecture, parameters and golden arrays of a small Mask2Former with a ResNet."""
    folder = tmp_path_factory.mktemp("mask2former")
    name = "generators/mask2former_tiny_resnet"
    shutil.copy(GOLDEN / f"{name}.safetensors", folder / "model.safetensors")
    shutil.copy(GOLDEN / f"{name}.config.json", folder / "config.json")
    settings = {"size": {"height": 384, "width": 384}, "size_divisor": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    opened = open_generator(folder)
    assert (opened.layout, opened.preparation.fixed_size) == ("transformers", (384, 384))
    return opened.config, opened.parameters(), golden(name)


@pytest.fixture(scope="module")
def run(mask2former):
    """All layers' predictions, and what backbone and pixel decoder give."""
    config, parameters, arrays = mask2former
    module = config.make_module()

    @jax.jit
    def everything(parameters, images):
        return module.apply(
            {"params": parameters},
            images,
            every_layer=True,
            capture_intermediates=lambda part, method: part.name in ("backbone", "pixel_decoder"),
        )

    predictions, captured = everything(parameters, golden_images(arrays))
    parts = {name: part["__call__"][0] for name, part in captured["intermediates"].items()}
    return predictions, parts


def test_backbone_and_pixel_decoder_are_the_official_ones(mask2former, run):
    _, _, arrays = mask2former
    _, parts = run
    close(parts["backbone"][3], channels_last(arrays["backbone_stage4"]))
    features, levels = parts["pixel_decoder"]
    close(features[..., ::8], channels_last(arrays["pixel_decoder_mask_features"]))
    close(levels[0], channels_last(arrays["pixel_decoder_scale_0"]))


def test_masks_and_classes_of_all_layers_are_the_official_ones(mask2former, run):
    _, _, arrays = mask2former
    predictions, _ = run
    masks, classes = predictions.mask_logits, predictions.class_logits
    close(masks[:, :, ::4], arrays["masks_queries_logits_per_layer"])
    close(classes, arrays["class_queries_logits_per_layer"])
    close(masks[-1], arrays["masks_queries_logits"])


def test_resized_mask_features_give_the_resized_masks(run):
    """The decoder never resizes masks: sums over channels and resizing commute."""
    _, parts = run
    features, levels = parts["pixel_decoder"]
    queries = jax.random.normal(jax.random.key(0), (1, 5, features.shape[-1]))

    @functools.partial(jax.jit, static_argnums=1)
    def in_both_orders(features, size):
        masks = mask_products(queries, features, jnp.float32)
        small = resize(features, size, axes=(1, 2))
        return mask_products(queries, small, jnp.float32), resize(masks, size, axes=(2, 3))

    for level in levels:
        small_first, masks_first = in_both_orders(features, level.shape[1:3])
        close(small_first, np.asarray(masks_first))


def test_swin_pads_shifts_and_merges_as_the_official_one():
    """Windows of 7 on maps of 24x32, 12x16 and 6x8, which is smaller than a window."""
    name = "generators/maskformer_tiny_swin_backbone"
    config = SwinConfig(width=16, blocks=(1, 2, 2), heads=(1, 2, 4), window=7)
    module, images = config.make_module(jnp.float32), golden_images(golden(name))
    expected = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    tensors = load_state_dict(GOLDEN / f"{name}.safetensors")
    table = transformers_rules_of(MaskFormerConfig(5, config))
    parameters = to_ours(tensors, {"backbone": expected}, table, source=name)["backbone"]
    maps = jax.jit(module.apply)({"params": parameters}, images)
    close(maps[2], channels_last(golden(name)["backbone_stage3"]))


@pytest.fixture(scope="module")
def interaction():
    """FreeSeg's text interaction, its parameters, and golden arrays."""
    arrays = golden("generators/freeseg_interaction")
    config = TextConfig(64, 128, 96, 8)
    module = TextInteraction(config, jnp.float32)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), [jnp.zeros((1, 1, 1, 64))], jnp.zeros((1, 64))
    )["params"]
    prefix = "sem_seg_head.interaction."
    names = [name for name in arrays if name.startswith(("attn.", "layer_norm_", "gamma"))]
    tensors = {prefix + name: arrays[name] for name in names}
    table = rules_of(Mask2FormerConfig(text=config))
    parameters = to_ours(tensors, {"interaction": shapes}, table, source="interaction")
    return module, parameters["interaction"], arrays


def test_text_interaction_is_the_official_one(interaction):
    module, parameters, arrays = interaction
    coarse, features = (channels_last(arrays[name]) for name in ("scale_1_32", "mask_features"))
    maps = [jax.device_put(x) for x in (coarse, coarse, coarse, features)]
    text = jax.device_put(arrays["text_features"])
    results = jax.jit(module.apply)({"params": parameters}, maps, text)
    close(results[0], channels_last(arrays["interaction_scale_1_32"]))
    close(results[3], channels_last(arrays["interaction_mask_features"]))


def test_folded_text_is_attention_with_projected_text(interaction):
    module, parameters, arrays = interaction
    x = channels_last(arrays["scale_1_32"])[0].reshape(-1, 64)
    text = arrays["text_features"][:4]
    result = jax.jit(module.apply)({"params": parameters}, [x.reshape(1, 6, 8, 64)], text)[0]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normal * parameters[name]["scale"] + parameters[name]["bias"]

    query, keys = norm(x, "norm_maps"), norm(text, "norm_text")
    project = functools.partial(np.einsum, "td,dak->tak")
    q, k, v = (
        project(tokens, parameters[f"{name}_kernel"]) + parameters[f"{name}_bias"]
        for name, tokens in (("query", query), ("key", keys), ("value", keys))
    )
    attention = np.asarray(jax.nn.softmax(np.einsum("qak,cak->qac", q, k) / np.sqrt(16)))
    attended = np.einsum("qac,cak->qak", attention, v)
    read = np.einsum("qak,akd->qd", attended, parameters["out_kernel"]) + parameters["out_bias"]
    close(result.reshape(-1, 64), query + parameters["gamma"] * read)
