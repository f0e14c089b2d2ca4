"""A network's masks of one image at every pixel, which nothing rounds on the way to its labels."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array

from maft_jax.models.generators.proposing import masks_at, pixel_weights
from maft_jax.proposals.generator import MaskLogits


def pixel_masks(logits: MaskLogits, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """What replaces the proposals in a `Segmenter`'s batch of this image.

    The official order: logits are enlarged to the padded image, and then comes the sigmoid; masks
    go on in the padding. Where the network read the image at another size than the batch has it,
    logits are sampled at the same places of the image, and the padding is outside of all masks.
    """
    num_proposals, *side = batch["proposals"].shape[1], *batch["image"].shape[1:3]
    (image_size,), (padded_size,) = batch["image_size"], batch["padded_size"]
    weights = []
    for axis in (0, 1):
        image, read = int(image_size[axis]), logits.input_size[axis]
        pixels = np.arange(padded_size[axis] if image == read else image) + 0.5
        weights.append(
            pixel_weights(
                pixels * (read / image) - 0.5,
                logits.padded_size[axis],
                (side[axis], logits.values.shape[1 + axis]),
                align_corners=logits.align_corners,
            )
        )
    values = np.zeros((num_proposals, *logits.values.shape[1:]), np.float32)
    values[: len(logits.values)] = logits.values
    masks = _masks_at(*(array[None] for array in (values, *weights)))
    return {
        "proposals": masks,
        "proposal_grid": batch["image_size"],
        "proposal_extent": batch["padded_size"],
    }


_masks_at = jax.jit(masks_at)
