"""What IP-CLIP promises, of towers and rules that the official MAFT does not have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from maft_jax.config.sections import MeshConfig
from maft_jax.models.attention import XlaAttention
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.encoder import EncoderSettings, ImageEncoder, MaskingSpec
from maft_jax.models.flash_attention import FlashAttention
from maft_jax.models.preprocess import patch_mask
from maft_jax.models.rotary import grid_rotation
from maft_jax.models.towers.eva02 import Eva02Config
from maft_jax.models.towers.tips import TipsConfig
from maft_jax.runtime import sharding
from maft_jax.runtime.sharding import one_device_mesh
from tests.models import plain_towers
from tests.tiny_models import VISION

pytestmark = pytest.mark.slow

XLA = XlaAttention()
EVA = Eva02Config(128, 3, 16, 64, 32, 340)
TIPS = TipsConfig(128, 3, 16, 64, 192, activation="gelu")
TOWERS = [
    (EVA, MaskingSpec(1, 64)),
    (EVA, MaskingSpec(1, 64, mask_rule="maskclippp")),
    (TIPS, MaskingSpec(1, 64, mask_rule="shared_patches", class_token=1)),
]
MORE_TOWERS = [
    (EVA, MaskingSpec(1, 64, mask_rule="shared_patches")),
    (TIPS, MaskingSpec(1, 64)),
    (dataclasses.replace(TIPS, gated=True), MaskingSpec(2, 64, mask_rule="shared_patches")),
    (VISION, MaskingSpec(1, 64, mask_rule="shared_patches")),
]


class Tower:
    """An encoder with parameters that are no initial ones, and inputs."""

    def __init__(self, config, masking):
        self.config, self.masking = config, masking
        settings = EncoderSettings(masking, one_device_mesh(), attention="xla")
        self.encoder = config.make_encoder(settings)
        shapes = jax.eval_shape(lambda: config.init(jax.random.key(0)))
        rng = np.random.default_rng(0)
        self.visual = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 6, jnp.float32), shapes
        )
        self.images = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
        masks = rng.uniform(size=(2, 5, 8, 8)).astype(np.float32)
        masks[:, 0], masks[:, 1] = 0, 1
        self.masks = jax.device_put(masks)

    def changed(self, **tower):
        """The encoder with other fields of its module."""
        module = self.encoder.tower.clone(**tower)
        return dataclasses.replace(self.encoder, tower=module)

    @functools.cached_property
    def both(self):
        return jax.jit(self.encoder.encode_both)

    @functools.cached_property
    def found(self):
        return self.both(self.visual, self.images, self.masks)


def named(towers):
    return [f"{type(config).__name__}-{masking.mask_rule}" for config, masking in towers]


@pytest.fixture(
    scope="module",
    params=TOWERS + MORE_TOWERS,
    ids=named(TOWERS + MORE_TOWERS),
)
def tower(request):
    return Tower(*request.param)


def test_it_is_an_encoder(tower):
    assert isinstance(tower.encoder, ImageEncoder)


def test_whole_images_are_as_without_proposals(tower):
    whole = jax.jit(tower.encoder.encode_images)(tower.visual, tower.images)
    np.testing.assert_allclose(tower.found[1], whole, atol=2e-6)


def test_proposals_do_not_see_each_other(tower):
    others = tower.masks.at[:, 2:-1].set(1 - tower.masks[:, 2:-1])
    features, _ = tower.both(tower.visual, tower.images, others)
    unchanged = np.array([0, 1, -1])
    np.testing.assert_array_equal(features[:, unchanged], tower.found[0][:, unchanged])
    assert np.abs(features - tower.found[0]).max() > 1e-3


def test_one_proposal_alone_is_what_it_is_among_others(tower):
    alone = jax.jit(tower.encoder.encode_proposals)(tower.visual, tower.images, tower.masks[:, 3:4])
    np.testing.assert_allclose(alone[:, 0], tower.found[0][:, 3], atol=2e-6)


def test_empty_masks_read_themselves_or_as_maskclippp_everything(tower):
    features, _ = tower.found
    difference = np.abs(features[:, 0] - features[:, 1]).max()
    if tower.masking.mask_rule == "maskclippp":
        assert difference < 2e-6  # an empty mask is a constant one
    else:
        assert difference > 1e-3


def test_proposals_agree_with_one_sequence_under_one_mask_in_numpy(tower):
    if tower.masking.mask_rule == "maskclippp" or tower.config is VISION:
        return  # compared with their own codes in test_eva02.py and test_ip_clip.py
    visual = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tower.visual)
    allowed = np.asarray(patch_mask(tower.masks, tower.config.native_grid))
    for image, pixels in enumerate(np.asarray(tower.images, np.float64)):
        expected = plain_towers.proposal_embeddings(
            tower.config,
            visual,
            pixels,
            allowed[image],
            tower.masking.mask_start_layer,
            tower.masking.mask_rule == "shared_patches",
            tower.masking.class_token,
        )
        np.testing.assert_allclose(tower.found[0][image], expected, atol=5e-6)


def values_and_gradients(tower, encoder):
    def total(visual):
        found = encoder.encode_both(visual, tower.images, tower.masks)
        return sum(jnp.sum(jnp.sin(jnp.arange(x.size)) * x.ravel()) for x in found), found

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(tower.visual)
    return found, gradient


def assert_same(found, expected, tolerance=2e-5):
    for ours, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        allowed = tolerance * max(1, np.abs(other).max())
        np.testing.assert_allclose(ours, other, rtol=0, atol=allowed)


def test_scanned_recomputed_and_fused_give_the_same_with_gradients(tower):
    plain = values_and_gradients(tower, tower.encoder)
    scanned = tower.changed(loop=BlockLoop.SCANNED)
    assert_same(values_and_gradients(tower, scanned), plain)
    assert_same(values_and_gradients(tower, tower.changed(remat=True)), plain)
    if tower.masking.mask_rule != "maskclippp":
        fused = FlashAttention(one_device_mesh(), tower.config.head_width, interpret=True)
        assert_same(values_and_gradients(tower, tower.changed(attention=fused)), plain)


@pytest.mark.parametrize("parts", ["qkv", "q", "kv"])
def test_kernels_are_given_what_xla_rotates(parts):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 256)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(256, len(parts), 4, 64)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(len(parts), 4, 64)), jnp.float32)
    rotation = grid_rotation((2, 3), 64, [range(1, 7)], 7)
    fused = FlashAttention(one_device_mesh(), 64)
    plain, packed = (a.rotate(a.project(x, kernel, bias), parts, rotation) for a in (XLA, fused))
    unpacked = rearrange(packed, "b t (g p a h) -> p b (g a) t h", p=len(parts), a=2, h=64)
    np.testing.assert_allclose(unpacked, jnp.stack(plain), atol=1e-4)
    still = XLA.project(x, kernel, bias)
    np.testing.assert_array_equal(plain[0][:, :, 0], still[0][:, :, 0])  # the class token
    assert np.abs(plain[0] - still[0]).max() > 1


def test_heads_and_hidden_features_split_over_devices(tower):
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, model=2), jax.devices())
    visual = sharding.place(tower.visual, mesh, tower.config.sharding_rules)
    settings = EncoderSettings(tower.masking, mesh, attention="xla")
    encoder = tower.config.make_encoder(settings)
    images, masks = (jnp.concatenate([x, x]) for x in (tower.images, tower.masks))
    found = jax.jit(encoder.encode_both)(visual, images, masks)
    assert_same(jax.tree.map(lambda x: x[2:], found), tower.found)


@pytest.mark.parametrize(
    ("config", "masking", "message"),
    [
        (VISION, MaskingSpec(1, 64, mask_rule="maskclippp"), "no mask_logit_scale"),
        (TIPS, MaskingSpec(1, 64, mask_rule="maskclippp"), "no mask_logit_scale"),
        (TIPS, MaskingSpec(1, 64, class_token=2), "class_token=2: expected a number below 2"),
        (EVA, MaskingSpec(1, 64, class_token=1), "class_token=1: expected a number below 1"),
        (TIPS, MaskingSpec(1, 72), "TIPS reads proposals on whole patches of 16.*64x64 or 80x80"),
    ],
)
def test_what_a_tower_cannot_is_refused(config, masking, message):
    with pytest.raises(ValueError, match=message):
        config.make_encoder(EncoderSettings(masking, one_device_mesh()))
    with pytest.raises(ValueError, match="mask_rule: expected one of"):
        MaskingSpec(0, 64, mask_rule="soft")
