"""What the encoders of all image towers have in common."""

from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models import layers
from maft_jax.models.array_types import Images
from maft_jax.models.encoder import ImageArchitecture, Parameters, scaled_similarities
from maft_jax.models.mask_pooling import RULES
from maft_jax.models.precision import tpu_precision
from maft_jax.models.resize import resize


class TowerEncoder:
    """Most of a models.encoder.ImageEncoder; base of frozen dataclasses with these fields."""

    tower: Any
    logit_scale: float

    def __post_init__(self):
        if self.logit_scale <= 0:
            raise ValueError(f"logit_scale: expected a positive number, got {self.logit_scale}")

    @property
    def architecture(self) -> ImageArchitecture:
        """See ImageEncoder."""
        return self.tower.config

    @property
    def dtype(self) -> DTypeLike:
        """See ImageEncoder."""
        return self.tower.dtype

    @property
    def cell(self) -> int:
        """Pixels per side of a cell of the grid on which masks are read."""
        return self.architecture.patch_size

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        """See ImageEncoder."""
        raise NotImplementedError

    def prepare(self, images: Images, size: tuple[int, int]) -> Float[Array, "b h2 w2 3"]:
        """See ImageEncoder."""
        precision = tpu_precision(self.dtype)
        return resize(self.normalise(images), size, axes=(1, 2), precision=precision)

    def scaled(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """See ImageEncoder."""
        height, width = (max(1, round(side * scale / self.cell)) * self.cell for side in size)
        return height, width

    def in_compute_dtype(self, parameters: Parameters) -> Parameters:
        """See ImageEncoder."""
        return layers.in_compute_dtype(parameters, self.dtype)

    def logits(
        self, features: Float[Array, "*rows e"], text: Float[Array, "c e"]
    ) -> Float[Array, "*rows c"]:
        """See ImageEncoder."""
        return scaled_similarities(features, text, self.logit_scale, self.dtype)

    def probabilities(self, logits: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        """See ImageEncoder."""
        return jax.nn.softmax(logits, axis=-1)


class PoolingEncoder(TowerEncoder):
    """The same of towers that pool, with one more field."""

    mask_pooling: str
    """A key of mask_pooling.RULES."""

    def __post_init__(self):
        super().__post_init__()
        if self.mask_pooling not in RULES:
            raise ValueError(
                f"mask_pooling: expected one of {list(RULES)}, got {self.mask_pooling!r}"
            )
