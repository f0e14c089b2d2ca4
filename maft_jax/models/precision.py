"""How exactly accelerators multiply: by default TPUs round float32 to bfloat16, GPUs to TF32."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def matmul_precision(dtype: DTypeLike) -> lax.Precision | None:
    """Highest for float32; else the backend's own."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def tpu_precision(dtype: DTypeLike) -> lax.Precision:
    """On a TPU, of float32 products before and after a tower whose own products are in `dtype`.

    Three passes around a bfloat16 tower, an error of 1e-5; six take twice as long, to compile as
    well.
    """
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.HIGH


def float32_product(
    x: Float[Array, "m k"], y: Float[Array, "k n"], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """x @ y after a tower whose own products are in `dtype`."""
    return lax.platform_dependent(
        x,
        y,
        tpu=functools.partial(jnp.dot, precision=tpu_precision(dtype)),
        default=functools.partial(jnp.dot, precision=lax.Precision.HIGHEST),
    )
