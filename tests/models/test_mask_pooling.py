"""Pooling of masks against sums that are written out, and against attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.models.encoder import MaskingSpec, refuse_mask_pooling
from maft_jax.models.mask_pooling import (
    SOFT_EPSILON,
    hard_weights,
    mask_of_logits,
    pool,
)
from maft_jax.models.preprocess import soft_patch_mask

RNG = np.random.default_rng(0)
VALUES = jnp.array(RNG.normal(size=(2, 12, 6)), jnp.float32)
WEIGHTS = jnp.array(RNG.uniform(0.1, 1, size=(2, 5, 12)), jnp.float32).at[:, 3].set(0)


def test_pooling_is_the_weighted_mean_head_by_head():
    importance = jnp.array(RNG.uniform(0.1, 2, size=(2, 12, 3)), jnp.float32)
    pooled = pool(VALUES, WEIGHTS, importance)
    for image in range(2):
        for proposal in range(5):
            for head in range(3):
                factors = WEIGHTS[image, proposal] * importance[image, :, head]
                part = np.s_[2 * head : 2 * head + 2]
                expected = factors @ VALUES[image, :, part] / (factors.sum() or 1)
                np.testing.assert_allclose(pooled[image, proposal, part], expected, atol=1e-6)


def test_pooling_with_exponentials_is_masked_attention_of_one_query():
    heads = jnp.array(3 * RNG.normal(size=(2, 12, 3)), jnp.float32)
    allowed = jnp.array(RNG.integers(0, 2, (2, 5, 12)), bool).at[:, :, 0].set(True)
    scores = jnp.where(allowed[:, :, None], heads.transpose(0, 2, 1)[:, None], -jnp.inf)
    attention = jax.nn.softmax(scores, axis=-1)
    expected = jnp.einsum("bnat,btah->bnah", attention, VALUES.reshape(2, 12, 3, 2))
    importance = jnp.exp(heads - heads.max(axis=1, keepdims=True))
    pooled = pool(VALUES, allowed.astype(jnp.float32), importance)
    np.testing.assert_allclose(pooled, expected.reshape(2, 5, 6), atol=1e-5)


def test_empty_masks_pool_to_zeros_and_have_finite_gradients():
    assert not np.any(pool(VALUES, WEIGHTS)[:, 3])
    squared = jax.grad(lambda v, w: jnp.sum(pool(v, w) ** 2), argnums=(0, 1))
    gradients = jax.jit(squared)(VALUES, WEIGHTS)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_epsilon_is_added_to_the_sum_of_the_weights():
    small = WEIGHTS * 1e-5
    expected = np.einsum("bnt,btd->bnd", small, VALUES)
    expected /= small.sum(-1, keepdims=True) + 1e-6
    np.testing.assert_allclose(pool(VALUES, small, epsilon=SOFT_EPSILON), expected, atol=1e-6)


def test_rules_on_a_mask_that_covers_cells_in_part():
    mask = (
        jnp.zeros((1, 1, 4, 8), jnp.uint8).at[..., :3].set(255)
    )  # of four cells: full, half, empty, empty
    np.testing.assert_array_equal(hard_weights(mask, (1, 4)), [[[1, 1, 0, 0]]])
    np.testing.assert_array_equal(soft_patch_mask(mask, (1, 4)), [[[1, 0.5, 0, 0]]])
    logits = jnp.where(mask, 1.0, -3.0)  # the mean of half a cell is -1
    np.testing.assert_array_equal(mask_of_logits(logits, (1, 4)), [[[[True, False, False, False]]]])


def test_towers_with_class_tokens_know_the_hard_rule_alone():
    refuse_mask_pooling(MaskingSpec(8, 480))
    with pytest.raises(ValueError, match="mask_pooling=soft: for image towers that pool"):
        refuse_mask_pooling(MaskingSpec(8, 480, "soft"))
