"""FreeSeg's interaction of maps with class names: cross-attention to the rows of the vocabulary.

Rows are few and the same for all tokens, so what multiplies them is multiplied with the projections
first: a map's tokens meet one small matrix per head instead of the wide inner projection.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.layers import LayerNorm, fan_in_init
from maft_jax.models.precision import matmul_precision


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How a generator reads class names."""

    width: int = 512
    """Of the text tower's embeddings."""
    inner_width: int = 2048
    """Of the interaction's attention."""
    class_mlp_width: int = 1024
    """Between a query and its class embedding."""
    heads: int = 8

    def __post_init__(self):
        if self.inner_width % self.heads:
            raise ValueError(
                f"a text interaction of inner width {self.inner_width} with {self.heads} heads; "
                "expected a multiple"
            )


class TextInteraction(nn.Module):
    """One attention for all maps, one after the other."""

    config: TextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ d"]], text: Float[Array, "c e"]
    ) -> list[Float[Array, "b _ _ d"]]:
        """The normalised maps, plus what they read in the text.

        The text goes through its LayerNorm once more for each map, as in the official code.
        """
        config, width = self.config, maps[0].shape[-1]
        split = (config.heads, config.inner_width // config.heads)
        init = fan_in_init(width)
        parameters = {
            name: (
                self.param(f"{name}_kernel", init, shape),
                self.param(f"{name}_bias", nn.initializers.zeros, shape[1:]),
            )
            for name, shape in (
                ("query", (width, *split)),
                ("key", (config.width, *split)),
                ("value", (config.width, *split)),
            )
        }
        out_kernel = self.param("out_kernel", init, (*split, width))
        out_bias = self.param("out_bias", nn.initializers.zeros, (width,))
        gamma = self.param("gamma", nn.initializers.constant(0.1), (width,))
        norm_maps = LayerNorm(self.dtype, name="norm_maps")
        norm_text = LayerNorm(jnp.float32, name="norm_text")
        results = []
        for one in maps:
            text = norm_text(text)
            query = norm_maps(one)
            folded = _fold(parameters, jnp.multiply(out_kernel, gamma), text)
            results.append(query + _read(query, *folded, self.dtype) + (out_bias * gamma))
        return [result.astype(self.dtype) for result in results]


def _fold(
    parameters, out_kernel: Float[Array, "a k d"], text: Float[Array, "c e"]
) -> tuple[Float[Array, "d a c"], Float[Array, "a c"], Float[Array, "a c d"]]:
    """What scores and what is read are linear in, once the text is known; in float32."""
    product = functools.partial(jnp.einsum, precision=matmul_precision(jnp.float32))
    (query, query_bias), (key, key_bias), (value, value_bias) = parameters.values()
    scale = query.shape[-1] ** -0.5
    keys = (product("ce,eak->cak", text, key) + key_bias) * scale
    values = product("ce,eak->cak", text, value) + value_bias
    return (
        product("dak,cak->dac", query, keys),
        product("ak,cak->ac", query_bias, keys),
        product("cak,akd->acd", values, out_kernel),
    )


def _read(
    query: Float[Array, "b h w d"],
    to_scores: Float[Array, "d a c"],
    score_bias: Float[Array, "a c"],
    to_output: Float[Array, "a c d"],
    dtype: DTypeLike,
) -> Float[Array, "b h w d"]:
    product = functools.partial(jnp.einsum, precision=matmul_precision(dtype))
    scores = product("bhwd,dac->bhwac", query, to_scores.astype(dtype)).astype(jnp.float32)
    attention = jax.nn.softmax(scores + score_bias).astype(dtype)
    return product("bhwac,acd->bhwd", attention, to_output.astype(dtype))
