"""Attention products: plain, and from mask proposals into one shared stream of patches.

The official encoder runs one sequence of n class tokens and t patches with an (n + t) x (n + t)
mask. In it patches never see class tokens, and class token n sees itself and its allowed patches.
So the patches are an ordinary self-attention, and the proposals n queries into it.

Heads come before tokens: XLA's products on a CPU take half the time in this layout.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from maft_jax.models.precision import matmul_precision


def self_attention(
    q: Float[Array, "b a q h"],
    k: Float[Array, "b a k h"],
    v: Float[Array, "b a k h"],
    allowed: Bool[Array, "q k"] | Float[Array, "b a q k"] | None = None,
) -> Float[Array, "b a q h"]:
    """Softmax attention; `allowed` is shared by batch and heads, or numbers that are added to the
    scores. Softmax in float32."""
    logits = _logits("baqh,bakh->baqk", q, k)
    if allowed is not None and allowed.dtype != bool:
        logits = logits + allowed
    elif allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return _product("baqk,bakh->baqh", weights, v)


def proposal_attention(
    q: Float[Array, "b a n h"],
    k: Float[Array, "b a n h"],
    v: Float[Array, "b a n h"],
    patch_k: Float[Array, "b a t h"],
    patch_v: Float[Array, "b a t h"],
    allowed: Bool[Array, "b n t"],
) -> Float[Array, "b a n h"]:
    """Each proposal attends to itself and to its allowed patches, never to another proposal.

    A proposal that allows no patch attends only to itself.
    """
    to_self = _logits("banh,banh->ban", q, k)[..., None]
    to_patches = _logits("banh,bath->bant", q, patch_k)
    to_patches = jnp.where(allowed[:, None], to_patches, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([to_self, to_patches], axis=-1), axis=-1)
    weights = weights.astype(v.dtype)
    return weights[..., :1] * v + _product("bant,bath->banh", weights[..., 1:], patch_v)


def _logits(subscripts, q, k):
    scale = q.shape[-1] ** -0.5
    return jnp.einsum(
        subscripts,
        q * scale,
        k,
        precision=matmul_precision(q.dtype),
        preferred_element_type=jnp.float32,
    )


def _product(subscripts, weights, v):
    return jnp.einsum(subscripts, weights, v, precision=matmul_precision(v.dtype))
