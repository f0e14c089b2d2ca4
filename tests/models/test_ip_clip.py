"""The encoder against the plain PyTorch rendition, in sizes the golden files do not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.benchmarks.pytorch.official_step import image_features, proposal_features
from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from maft_jax.models.text.clip_text import TextTransformer
from maft_jax.models.text.tokenizer import tokenize
from tests.in_memory_weights import from_openai
from tests.tiny_models import VISION, ip_clip, tiny_batch, tiny_spec, tiny_visual


def torch_clip(patch_size=16, layers=3, image_size=64):
    return random_clip(
        0,
        vision_width=128,
        vision_layers=layers,
        patch_size=patch_size,
        image_size=image_size,
        text_width=64,
        text_layers=2,
        embed_dim=32,
        text_heads=1,
        vocab_size=49408,
    ).eval()


def ours(clip):
    tensors = {name: value.detach().numpy() for name, value in clip.state_dict().items()}
    return from_openai(tensors, source="random_clip")


@pytest.mark.parametrize(
    ("patch_size", "layers", "start", "size", "n"),
    [
        (8, 3, 0, (40, 72), 37),
        (32, 3, 1, (96, 160), 37),
        (16, 3, 2, (71, 50), 1),
        (16, 3, 3, (64, 64), 2),
        (16, 1, 0, (64, 48), 5),
    ],
)
def test_features_match_pytorch(patch_size, layers, start, size, n):
    clip = torch_clip(patch_size, layers)
    config, parameters = ours(clip)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    masks = rng.uniform(size=(2, n, 23, 31)).astype(np.float32)
    masks[:, 0] = 0.0
    encoder = ip_clip(config.vision, start)
    features, whole = jax.jit(encoder.encode_both)(parameters["visual"], images, masks)

    with torch.no_grad():
        torch_images = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = proposal_features(clip.visual, torch_images, torch.from_numpy(masks), start)
        expected_whole = image_features(clip.visual, torch_images)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(whole, expected_whole.numpy(), atol=1e-5, rtol=0)


def test_text_tower_matches_pytorch():
    clip = torch_clip()
    config, parameters = ours(clip)
    tokens = tokenize(["a photo of a cat.", "wall-other"])
    tower = TextTransformer(config.text)
    features = jax.jit(tower.apply)({"params": parameters["text"]}, tokens)
    with torch.no_grad():
        expected = clip.encode_text(torch.from_numpy(tokens).long())
        expected = torch.nn.functional.normalize(expected, dim=-1)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def encode():
    encoder, visual = tiny_spec().encoder, tiny_visual()
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    @jax.jit
    def run(masks):
        return encoder.encode_proposals(visual, images, masks)

    return run


def test_permuting_proposals_permutes_features(encode):
    masks = tiny_batch(2).proposals
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(encode(masks[:, order]), encode(masks)[:, order], atol=1e-6)


def test_proposals_do_not_see_each_other(encode):
    masks = tiny_batch(2).proposals
    others = masks.at[:, 1:].set(255 - masks[:, 1:])
    np.testing.assert_array_equal(encode(others)[:, 0], encode(masks)[:, 0])
    assert not np.allclose(encode(others)[:, 1], encode(masks)[:, 1], atol=1e-3)


def test_mask_kinds_agree(encode):
    masks = tiny_batch(2).proposals
    expected = encode(masks)
    np.testing.assert_array_equal(encode(masks > 0), expected)
    np.testing.assert_array_equal(encode((masks > 0).astype(jnp.float32)), expected)
    np.testing.assert_array_equal(encode(masks / jnp.float32(255)), expected)


@pytest.mark.slow
def test_remat_changes_no_number():
    masks, visual = tiny_batch(2).proposals, tiny_visual()
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    def value_and_gradient(remat):
        encoder = tiny_spec(remat=remat).encoder

        def total(visual):
            features = encoder.encode_both(visual, images, masks)
            return sum(jnp.sum(jnp.sin(jnp.arange(x.size)) * x.ravel()) for x in features)

        return jax.jit(jax.value_and_grad(total))(visual)

    plain, recomputed = value_and_gradient(False), value_and_gradient(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, recomputed)


@pytest.mark.slow
def test_bfloat16_is_close_and_returns_float32(encode):
    masks, visual = tiny_batch(2).proposals, tiny_visual()
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    encoder = tiny_spec(dtype=jnp.bfloat16).encoder
    features = encoder.encode_proposals(visual, images, masks)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, encode(masks), atol=2e-2)


@pytest.mark.parametrize("start", [-1, VISION.layers + 1])
def test_impossible_mask_start_layer_is_refused(start):
    with pytest.raises(ValueError, match=f"mask_start_layer={start}: expected 0 to 3"):
        ip_clip(VISION, start)
