"""CLIP's loss against open_clip's, and with equal contents against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss

from maft_jax.losses.contrastive import contrastive_loss

REPEATED = [0, 1, 0, 2, 1, 0, 3, 4]


def features(batch=8, width=16, seed=0):
    """Images and texts, L2-normalised."""
    values = np.random.default_rng(seed).standard_normal((2, batch, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def value_and_gradient(images, texts, scale, content):
    function = jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2))
    return function(
        jax.device_put(images), jax.device_put(texts), jnp.float32(scale), jnp.array(list(content))
    )


def numpy_loss(images, texts, scale, content):
    """Row by row: the mean of -log p over the texts of equal content, and the same for texts."""
    logits = scale * images.astype(float) @ texts.astype(float).T
    rows = []
    for scores in (logits, logits.T):
        for row, own in zip(scores, content, strict=True):
            log_p = row - np.log(np.exp(row).sum())
            rows.append(
                -np.mean([p for p, other in zip(log_p, content, strict=True) if other == own])
            )
    return np.mean(rows)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_with_all_contents_different_it_is_the_loss_of_open_clip(batch, scale):
    images, texts = features(batch)
    leaves = [torch.tensor(x, requires_grad=True) for x in (images, texts, np.float32(scale))]
    expected = ClipLoss()(*leaves)
    expected.backward()
    loss, gradients = value_and_gradient(images, texts, scale, np.arange(batch)[::-1])
    np.testing.assert_allclose(loss, expected.item(), atol=1e-6, rtol=1e-6)
    for ours, leaf in zip(gradients, leaves, strict=True):
        largest = max(1.0, float(leaf.grad.abs().max()))
        np.testing.assert_allclose(ours, leaf.grad.numpy(), atol=1e-6 * largest, rtol=0)


def test_targets_are_spread_over_equal_contents():
    images, texts = features()
    loss, gradients = value_and_gradient(images, texts, 5.0, REPEATED)
    np.testing.assert_allclose(loss, numpy_loss(images, texts, 5.0, REPEATED), rtol=1e-6)
    assert abs(loss - numpy_loss(images, texts, 5.0, range(8))) > 0.01
    for index, inputs in enumerate((images, texts)):
        for at in ((0, 3), (4, 11), (7, 0)):
            moved = [[images.astype(float), texts.astype(float)] for _ in range(2)]
            for sign, pair in zip((1, -1), moved, strict=True):
                pair[index] = pair[index].copy()
                pair[index][at] += sign * 1e-4
            upper, lower = (numpy_loss(*pair, 5.0, REPEATED) for pair in moved)
            np.testing.assert_allclose(gradients[index][at], (upper - lower) / 2e-4, atol=1e-6)
        assert gradients[index].shape == inputs.shape


def test_literal_numbers():
    """Two pairs of equal content: each row's target is a half and a half."""
    rows = jnp.eye(2)
    log_p = np.log(np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum())
    different = contrastive_loss(rows, rows, jnp.float32(2), jnp.array([3, 5]))
    equal = contrastive_loss(rows, rows, jnp.float32(2), jnp.array([3, 3]))
    np.testing.assert_allclose([different, equal], [-log_p[0], -log_p.mean()], rtol=1e-6)


@pytest.mark.parametrize("content", [range(8), REPEATED])
def test_images_and_texts_may_be_swapped(content):
    images, texts = features()
    loss, (by_image, by_text, by_scale) = value_and_gradient(images, texts, 9.0, content)
    swapped, (by_text_too, by_image_too, by_scale_too) = value_and_gradient(
        texts, images, 9.0, content
    )
    np.testing.assert_allclose(loss, swapped, rtol=1e-6)
    np.testing.assert_allclose(by_image, by_image_too, atol=1e-6)
    np.testing.assert_allclose(by_text, by_text_too, atol=1e-6)
    np.testing.assert_allclose(by_scale, by_scale_too, atol=1e-6)


def test_order_of_the_pairs_and_names_of_the_contents_do_not_matter():
    images, texts = features()
    order = np.random.default_rng(1).permutation(8)
    renamed = (np.array(REPEATED) * 7 + 100)[order]
    expected, _ = value_and_gradient(images, texts, 9.0, REPEATED)
    loss, _ = value_and_gradient(images[order], texts[order], 9.0, renamed)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
