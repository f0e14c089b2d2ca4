"""ImageNet's weights for a generator's ResNet, as torchvision or detectron2 name them."""

import os
import re

import jax
import jax.numpy as jnp

from maft_jax.convert import rules
from maft_jax.convert.generators_official import resnet_rules
from maft_jax.convert.prefixes import without_torch_wrappers
from maft_jax.convert.rules import Ignored
from maft_jax.convert.weights_source import open_tensors
from maft_jax.hub.local_files import local_path
from maft_jax.models.generators.resnet import ResNetConfig

_NAMES_OF_TORCHVISION = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
]
_IGNORED = [
    Ignored(r"backbone\.(stem\.)?fc\..*", "ImageNet's classes"),
    Ignored(r".*\.num_batches_tracked", "a counter of training"),
]


def read_backbone(path: str | os.PathLike, config: ResNetConfig) -> dict:
    """Parameters of the ResNet, float32 on the host.

    Raises:
        ValueError: absent, corrupt, or tensors unknown, missing or misshapen, which are listed.
    """
    path = local_path(os.fspath(path))
    tensors = without_torch_wrappers(open_tensors(path).tensors)
    renamed = {f"backbone.{_current(name)}": tensor for name, tensor in tensors.items()}
    module = config.make_module(jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    leaves = rules.stored_as_ours(
        renamed, {"backbone": expected}, resnet_rules(config), _IGNORED, source=path
    )
    return rules.materialised(leaves)["backbone"]


def _current(name: str) -> str:
    """A name of torchvision's as detectron2 has it; its own stay."""
    for pattern, replacement in _NAMES_OF_TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return name
