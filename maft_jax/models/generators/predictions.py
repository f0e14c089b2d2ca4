"""What generators predict: mask logits at stride 4 and class logits, for every query."""

import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.array_types import Leaf
from maft_jax.models.precision import matmul_precision


@flax.struct.dataclass
class Predictions:
    """Of one layer or, with a leading axis, of several."""

    mask_logits: Leaf
    """[b, n, h, w] float32: at stride 4 of the padded input."""
    class_logits: Leaf
    """[b, n, c] float32: the last column is "no object"."""
    class_embeddings: Leaf | None = None
    """[b, n, e]: class logits are 100 times their cosines with the text; None without text."""


def mask_products(
    embeddings: Float[Array, "*layer b q e"], features: Float[Array, "b h w e"], dtype: DTypeLike
) -> Float[Array, "*layer b q h w"]:
    """Mask logits, summed in float32."""
    return jnp.einsum(
        "...bqe,bhwe->...bqhw",
        embeddings.astype(dtype),
        features.astype(dtype),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )


def cosine_logits(
    embeddings: Float[Array, "*layer b q e"], text: Float[Array, "c e"]
) -> Float[Array, "*layer b q c"]:
    """100 times the cosine of every embedding with every row of unit length."""
    embeddings = embeddings.astype(jnp.float32)
    unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    return 100 * jnp.einsum("...e,ce->...c", unit, text, precision=matmul_precision(jnp.float32))
