"""Stochastic depth (Huang et al., 2016): in training, an image now and then skips a branch."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def branch_factors(
    keys: Key[Array, " b"], num_blocks: int, rate: float
) -> Float[Array, "block branch b"]:
    """What the residual branches of each image are multiplied by: 0, or 1 / their chance to stay.

    A block has two, attention and MLP, which are drawn apart. The share of branches left out rises
    linearly from 0 in the first block to `rate` in the last.

    Args:
        keys: one for each image, so that it does not matter which others are in the batch.
    """
    stay = 1 - np.linspace(0, rate, num_blocks)[:, None].repeat(2, axis=1)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, stay), out_axes=-1)(keys)
    return kept / jnp.float32(stay)[..., None]
