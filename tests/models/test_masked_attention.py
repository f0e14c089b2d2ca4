"""Proposal attention by literal numbers: two patches, one head of width one."""

import jax.numpy as jnp
import numpy as np

from maft_jax.models.masked_attention import proposal_attention, self_attention

LN2, LN3 = float(np.log(2.0)), float(np.log(3.0))


def attend(allowed):
    """One proposal of value 10 whose logits are 0 to itself, ln 2 and ln 3 to the patches."""

    def vector(*values):
        return jnp.array(values, jnp.float32).reshape(1, 1, len(values), 1)

    result = proposal_attention(
        q=vector(1.0),
        k=vector(0.0),
        v=vector(10.0),
        patch_k=vector(LN2, LN3),
        patch_v=vector(1.0, 2.0),
        allowed=jnp.array([[allowed]]),
    )
    return float(result[0, 0, 0, 0])


def test_full_mask_reads_itself_and_every_patch():
    # weights 1 : 2 : 3 on values 10, 1, 2
    np.testing.assert_allclose(attend([True, True]), (10 + 2 * 1 + 3 * 2) / 6, rtol=1e-6)


def test_single_patch_reads_itself_and_that_patch():
    np.testing.assert_allclose(attend([False, True]), (10 + 3 * 2) / 4, rtol=1e-6)
    np.testing.assert_allclose(attend([True, False]), (10 + 2 * 1) / 3, rtol=1e-6)


def test_empty_mask_attends_only_to_itself():
    assert attend([False, False]) == 10.0


def test_logits_are_scaled_by_the_head_width():
    q = jnp.full((1, 1, 1, 4), 1.0)
    k = jnp.array([[0.0] * 4, [LN3 / 2] * 4]).reshape(1, 1, 2, 4)
    v = jnp.array([[0.0] * 4, [4.0] * 4]).reshape(1, 1, 2, 4)
    # q k = 2 ln 3, divided by sqrt(4): weights 1 : 3
    np.testing.assert_allclose(self_attention(q, k, v)[0, 0, 0], [3.0] * 4, rtol=1e-6)


def test_causal_mask_hides_later_tokens():
    ones = jnp.ones((1, 1, 3, 1))
    values = jnp.array([3.0, 6.0, 9.0]).reshape(1, 1, 3, 1)
    causal = jnp.tril(jnp.ones((3, 3), bool))
    result = self_attention(ones, ones, values, causal).reshape(-1)
    np.testing.assert_allclose(result, [3.0, 4.5, 6.0], rtol=1e-6)
