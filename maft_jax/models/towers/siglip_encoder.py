"""SigLIP's image tower as it is run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.models.array_types import Images, Masks
from maft_jax.models.encoder import Parameters
from maft_jax.models.mask_pooling import RULES
from maft_jax.models.towers.tower_encoder import PoolingEncoder


@dataclasses.dataclass(frozen=True)
class SigLipEncoder(PoolingEncoder):
    """The models.encoder.ImageEncoder of a tower that pools its patches once for each proposal."""

    tower: Any
    """A SigLipTransformer."""
    logit_scale: float
    mask_pooling: str = "hard"
    """A key of mask_pooling.RULES."""
    is_sigmoid: bool = False
    """Classes are told apart each by itself, with the bias of the weights, as SigLIP was trained;
    else they share a softmax."""

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        if images.dtype == jnp.uint8:
            return images.astype(jnp.float32) / 127.5 - 1
        return images.astype(jnp.float32)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.tower.config.grid(*size)

    def encode_images(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b e"]:
        return self._read(parameters, pixels, self._whole(pixels))[:, 0]

    def encode_proposals(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> Float[Array, "b n e"]:
        return self._read(parameters, pixels, self._weights(pixels, masks))

    def encode_both(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        weights = [self._whole(pixels), self._weights(pixels, masks)]
        features = self._read(parameters, pixels, jnp.concatenate(weights, axis=1))
        return features[:, 1:], features[:, 0]

    def logits(
        self, features: Float[Array, "*rows e"], text: Float[Array, "c e"]
    ) -> Float[Array, "*rows c"]:
        """As SigLIP's: with the bias, which a softmax does not see."""
        return super().logits(features, text) + self.tower.config.logit_bias

    def probabilities(self, logits: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        if self.is_sigmoid:
            return jax.nn.sigmoid(logits)
        return super().probabilities(logits)

    def _read(self, parameters, pixels, weights):
        return self.tower.apply({"params": parameters}, pixels, weights)

    def _weights(self, pixels, masks):
        return RULES[self.mask_pooling](masks, self.grid(pixels.shape[1:3]))

    def _whole(self, pixels):
        rows, columns = self.grid(pixels.shape[1:3])
        return jnp.ones((pixels.shape[0], 1, rows * columns))
