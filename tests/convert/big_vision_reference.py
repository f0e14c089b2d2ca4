"""A Vision Transformer with big_vision's parameter layout, out of flax's own modules.

Written from the documented layout: pre-norm blocks with tanh GELU and LayerNorm of epsilon 1e-6, a
class token without a position, images in [-1, 1]. Nothing of maft_jax is used, and the names of
the parameters are those that flax gives by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        wide = nn.gelu(nn.Dense(self.mlp_dim)(x))
        return nn.Dense(x.shape[-1])(wide)


class EncoderBlock(nn.Module):
    num_heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.num_heads)(y, y)
        return x + MlpBlock(self.mlp_dim)(nn.LayerNorm()(x)), None


class Encoder(nn.Module):
    depth: int
    num_heads: int
    mlp_dim: int
    stacked: bool

    @nn.compact
    def __call__(self, x):
        sizes = {"num_heads": self.num_heads, "mlp_dim": self.mlp_dim}
        if self.stacked:
            scanned = nn.scan(
                EncoderBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = scanned(name="encoderblock", **sizes)(x, None)
        else:
            for layer in range(self.depth):
                x, _ = EncoderBlock(name=f"encoderblock_{layer}", **sizes)(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class BigVisionViT(nn.Module):
    """pool_type "tok"; `out_dim` None means no head. Reads [b, h, w, 3] in [-1, 1]."""

    width: int = 48
    depth: int = 3
    num_heads: int = 4
    mlp_dim: int = 80
    patch_size: int = 8
    out_dim: int | None = 24
    stacked: bool = False

    @nn.compact
    def __call__(self, images):
        size = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, size, strides=size, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, self.width)
        normal = nn.initializers.normal(self.width**-0.5)
        x = x + self.param("pos_embedding", normal, (1, x.shape[1], self.width))
        token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, [len(x), 1, 1]), x], axis=1)
        encoder = Encoder(
            self.depth, self.num_heads, self.mlp_dim, self.stacked, name="Transformer"
        )
        x = encoder(x)[:, 0]
        return x if self.out_dim is None else nn.Dense(self.out_dim, name="head")(x)


def embed(vit: BigVisionViT, tensors: dict[str, np.ndarray], images) -> jax.Array:
    """Normalised embeddings by an npz's tensors of images in [-1, 1]."""
    flat = {
        name.removeprefix("params/img/"): value
        for name, value in tensors.items()
        if name.startswith("params/img/")
    }
    params = traverse_util.unflatten_dict(flat, sep="/")
    with jax.default_matmul_precision("highest"):
        features = vit.apply({"params": params}, images)
    return features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-8)


def random_tensors(vit: BigVisionViT, image_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What its npz holds, every tensor random: fresh biases and class tokens would be zeros."""
    images = jnp.zeros((1, image_size, image_size, 3))
    params = vit.init(jax.random.key(seed), images)["params"]
    rng = np.random.default_rng(seed)
    return {
        f"params/img/{name}": np.asarray(value + 0.1 * rng.normal(size=value.shape), np.float32)
        for name, value in traverse_util.flatten_dict(params, sep="/").items()
    }
