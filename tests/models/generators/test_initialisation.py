"""What training begins with, by the bounds that the official code's initialisers have."""

import numpy as np
import pytest

from maft_jax.models.generators.deformable_attention import compass_bias
from maft_jax.models.generators.initialisation import initial_parameters
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.runtime import tree_rules

pytestmark = pytest.mark.slow

CONFIG = Mask2FormerConfig(
    ResNetConfig((1, 1, 1, 1), (16, 32, 64, 96), (4, 8, 16, 24), (8,)),
    PixelDecoderConfig(64, 64, 1, 96, 8),
    DecoderConfig(64, 20, 1, 128, 8),
    text=TextConfig(48, 128, 96, 8),
)

UNIFORM = {
    # Xavier, a = 1: sqrt(6 / (in + out)); packed projections count three outputs
    "pixel_decoder/input_proj_0/conv/kernel": (6 / (96 + 64)) ** 0.5,
    "pixel_decoder/layers_0/self_attn/value_proj/kernel": (6 / 128) ** 0.5,
    "pixel_decoder/layers_0/linear1/kernel": (6 / (64 + 96)) ** 0.5,
    "decoder/layers_0/cross_attn/in_kernel": (6 / (64 + 192)) ** 0.5,
    "interaction/key_kernel": (6 / (48 + 128)) ** 0.5,
    "interaction/out_kernel": (6 / (128 + 64)) ** 0.5,
    # Kaiming with a = 1: sqrt(3 / in)
    "pixel_decoder/fusion/conv/kernel": (3 / (9 * 64)) ** 0.5,
    "pixel_decoder/mask_features/kernel": (3 / 64) ** 0.5,
    # torch.nn.Linear's own: 1 / sqrt(in)
    "decoder/mask_embed/layers_2/kernel": 64**-0.5,
    "class_embed/layers_1/kernel": 96**-0.5,
    "class_embed/layers_1/bias": 96**-0.5,
    "decoder/layers_0/linear2/bias": 128**-0.5,
}
NORMAL = {
    "backbone/res2_0/conv2/conv/kernel": (2 / (9 * 4)) ** 0.5,
    "decoder/query_feat": 1.0,
    "decoder/level_embed": 1.0,
    "pixel_decoder/level_embed": 1.0,
    "non_object_embedding": 48**-0.5,
}
CONSTANT = {
    "pixel_decoder/layers_0/self_attn/sampling_offsets/kernel": 0,
    "pixel_decoder/layers_0/self_attn/attention_weights/kernel": 0,
    "pixel_decoder/layers_0/self_attn/attention_weights/bias": 0,
    "decoder/layers_0/self_attn/in_bias": 0,
    "pixel_decoder/fusion/norm/scale": 1,
    "interaction/gamma": 0.1,
}


@pytest.fixture(scope="module")
def leaves():
    return tree_rules.flatten(initial_parameters(CONFIG, seed=0))


def test_every_kind_of_parameter_is_drawn_as_the_official_code_does(leaves):
    for path, bound in UNIFORM.items():
        largest = np.abs(leaves[path]).max()
        assert 0.9 * bound < largest <= bound, path
        assert leaves[path].std() == pytest.approx(bound / 3**0.5, rel=0.12), path
    for path, deviation in NORMAL.items():
        assert leaves[path].std() == pytest.approx(deviation, rel=0.25), path
    for path, value in CONSTANT.items():
        np.testing.assert_allclose(leaves[path], value, rtol=1e-6, err_msg=path)
    found = leaves["pixel_decoder/layers_0/self_attn/sampling_offsets/bias"]
    np.testing.assert_array_equal(found, compass_bias(8, 3, 4))


def test_the_seed_alone_decides(leaves):
    again = tree_rules.flatten(initial_parameters(CONFIG, seed=0))
    assert all(np.array_equal(value, again[path]) for path, value in leaves.items())
    other = tree_rules.flatten(initial_parameters(CONFIG, seed=1))
    assert not np.array_equal(other["decoder/query_feat"], leaves["decoder/query_feat"])
