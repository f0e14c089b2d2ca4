"""Generators written and read back: the library's layout, the official one, backbones alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.convert.generator_backbones import read_backbone
from maft_jax.convert.generator_files import preparation_as_written, write_generator
from maft_jax.convert.generators import open_generator
from maft_jax.convert.generators_official import resnet_rules
from maft_jax.convert.generators_transformers import IGNORED
from maft_jax.convert.rules import ignored_names, to_foreign
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.runtime import tree_rules
from maft_jax.weights import open_weights
from tests.in_memory_weights import save_state_dict

pytestmark = pytest.mark.slow

RESNET = ResNetConfig((1, 2, 1, 1), (16, 32, 64, 96), (4, 8, 16, 24), (8,))
DEEPLAB = dataclasses.replace(RESNET, stem_widths=(4, 4, 8))
SWIN = SwinConfig(16, (1, 1, 1, 1), (1, 2, 4, 8), 4)


def architecture(backbone, **changes) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        backbone,
        PixelDecoderConfig(64, 64, 1, 96, 8),
        DecoderConfig(64, 5, 2, 128, 8),
        **(changes or {"num_classes": 2}),
    )


def random_tree(function) -> dict:
    """Values for the shapes of what a function would make."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(function)
    return tree_rules.map_with_path(
        lambda path, leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )


def check_equal(found, expected):
    found, expected = tree_rules.flatten(found), tree_rules.flatten(expected)
    assert set(found) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("backbone", [RESNET, SWIN], ids=["resnet", "swin"])
def test_a_mask2former_is_written_as_transformers_saves_it(tmp_path, backbone):
    config = architecture(backbone)
    parameters = random_tree(lambda: config.init(jax.random.key(0)))
    preparation = preparation_as_written(config, 128, 160)
    write_generator(tmp_path, config, parameters, preparation, ("cat", "dog"))
    opened = open_generator(tmp_path)
    assert (opened.config, opened.layout) == (config, "transformers")
    assert opened.preparation == preparation == ImagePreparation(True, 32, 128, 160)
    check_equal(opened.parameters(), parameters)


def test_transformers_loads_what_is_written(tmp_path):
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

    config = architecture(SWIN)
    parameters = jax.device_get(config.init(jax.random.key(0)))
    write_generator(
        tmp_path, config, parameters, preparation_as_written(config, 128, 160), ("cat", "dog")
    )
    model, loading = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    missing = loading["missing_keys"]
    assert not loading["mismatched_keys"] and not loading["unexpected_keys"]
    assert set(missing) == set(ignored_names([*missing], IGNORED)), "what nothing reads"
    assert model.config.id2label == {0: "cat", 1: "dog"}
    images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    ours = jax.jit(config.make_module().apply)({"params": parameters}, jax.device_put(images))
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    for found, expected in (
        (ours.mask_logits, theirs.masks_queries_logits.numpy()),
        (ours.class_logits, theirs.class_queries_logits.numpy()),
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=1e-5)


def test_freeseg_is_written_with_the_clip_that_reads_its_class_names(tmp_path):
    clip_config = CLIP_SIZES["tiny"]
    text = TextConfig(clip_config.text.embed_dim, 128, 96, 8)
    config = architecture(DEEPLAB, text=text)
    parameters = random_tree(lambda: config.init(jax.random.key(0)))
    clip = random_tree(lambda: random_parameters(clip_config))
    preparation = preparation_as_written(config, 128, 160)
    write_generator(tmp_path, config, parameters, preparation, (), clip)
    opened = open_generator(tmp_path)
    assert (opened.config, opened.layout) == (config, "official")
    assert opened.preparation == preparation and preparation.shortest_edge == 640
    check_equal(opened.parameters(), parameters)
    check_equal(open_weights(tmp_path, needs_text=True).parameters()["text"], clip["text"])


def torchvision_name(name: str) -> str:
    """What torchvision calls a tensor of detectron2's."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^stem\.conv1\.norm\.", "bn1.", name)
    name = re.sub(r"^stem\.", "", name)
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", name)


@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
def test_a_backbone_is_read_by_the_names_of(tmp_path, library):
    module = RESNET.make_module(jnp.float32)
    images = jnp.zeros((1, 64, 64, 3))
    expected = random_tree(lambda: module.init(jax.random.key(0), images)["params"])
    tensors = to_foreign({"backbone": expected}, resnet_rules(RESNET))
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    if library == "torchvision":
        tensors = {torchvision_name(name): value for name, value in tensors.items()}
        assert {"bn1.running_var", "layer2.1.bn3.bias", "layer1.0.downsample.0.weight"} <= {
            *tensors
        }
        tensors |= {"fc.weight": np.zeros((5, 96)), "fc.bias": np.zeros(5)}
    save_state_dict(tensors, tmp_path / "resnet.safetensors")
    check_equal(read_backbone(tmp_path / "resnet.safetensors", RESNET), expected)
    with pytest.raises(ValueError, match=r"resnet\.safetensors: cannot convert.*wrong shape"):
        read_backbone(
            tmp_path / "resnet.safetensors",
            dataclasses.replace(RESNET, widths=(16, 32, 64, 128)),
        )
