"""Position embeddings for a ViT that is trained from nothing."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from maft_jax.models.encoder import Parameters
from maft_jax.models.towers.clip_vit import VisionConfig


def with_sines(vision: VisionConfig, parameters: Mapping) -> Parameters:
    """Random parameters, but for positions, which begin as sines and cosines of rows and columns.

    CLIP's own initialisation is so small beside the patches' features that it takes thousands of
    steps until the tower knows where its patches are, and shapes are not learned before that.
    """
    rows = sines_and_cosines(*vision.native_grid, vision.width)
    return {
        **parameters,
        "position_embedding": parameters["position_embedding"].at[1:].set(rows),
    }


def sines_and_cosines(height: int, width: int, size: int) -> Float[np.ndarray, "patches size"]:
    """Of both coordinates of each patch, at size / 4 wavelengths between 1 and 10,000."""
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1)
    angles = [at / 10_000 ** np.linspace(0, 1, size // 4) for at in (x, y)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
