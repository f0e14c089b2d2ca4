"""DeepLab's ResNet against PyTorch: its stem, its dilated last stage, frozen norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.runtime import tree_rules

CONFIG = ResNetConfig((1, 1, 2, 3), (16, 16, 24, 32), (4, 4, 6, 8), (6, 6, 8))


def random_parameters() -> dict:
    module = CONFIG.make_module(jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            return values * float(np.prod(leaf.shape[:3])) ** -0.5
        return np.abs(values) + 0.5 if path.endswith("var") else values

    return tree_rules.map_with_path(draw, shapes)


def torch_layer(x, layer, *, stride=1, dilation=1):
    kernel = torch.from_numpy(layer["conv"]["kernel"].transpose(3, 2, 0, 1).copy())
    padding = dilation * (kernel.shape[-1] // 2)
    x = torch.nn.functional.conv2d(x, kernel, None, stride, padding, dilation)
    norm = {name: torch.from_numpy(value) for name, value in layer["norm"].items()}
    return torch.nn.functional.batch_norm(
        x, norm["mean"], norm["var"], norm["scale"], norm["bias"], eps=1e-5
    )


def torch_maps(parameters, images):
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    for index in range(3):
        x = torch_layer(x, parameters[f"stem_{index}"], stride=2 if index == 0 else 1).relu()
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, blocks in enumerate(CONFIG.blocks):
        for block in range(blocks):
            layers = parameters[f"res{stage + 2}_{block}"]
            stride = 2 if stage and not block else 1
            dilation = (1, 2, 4)[block] if stage == 3 else 1
            y = torch_layer(x, layers["conv1"]).relu()
            y = torch_layer(y, layers["conv2"], stride=stride, dilation=dilation).relu()
            y = torch_layer(y, layers["conv3"])
            if "shortcut" in layers:
                x = torch_layer(x, layers["shortcut"], stride=stride)
            x = (x + y).relu()
        maps.append(np.moveaxis(x.numpy(), 1, -1))
    return maps


def test_deeplab_has_three_stem_convolutions_and_dilates_the_last_stage():
    images = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype(np.float32)
    parameters = random_parameters()
    found = jax.jit(CONFIG.make_module(jnp.float32).apply)({"params": parameters}, images)
    for one, expected in zip(found, torch_maps(parameters, images), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(one / scale, expected / scale, rtol=0, atol=5e-6)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one or three convolutions"):
        ResNetConfig(stem_widths=(4, 4))
    with pytest.raises(ValueError, match="as many of each"):
        ResNetConfig(blocks=(1, 2))
    assert ResNetConfig().describe() == "ResNet-50"
    assert ResNetConfig((3, 4, 23, 3), stem_widths=(64, 64, 128)).describe() == "DeepLab ResNet-101"
