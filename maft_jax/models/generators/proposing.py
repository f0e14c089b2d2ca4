"""From a batch of images to proposals: one function to jit, and masks laid over their images."""

import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from maft_jax.models.array_types import Leaf
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.generators.mask2former import Mask2Former
from maft_jax.models.generators.maskformer import MaskFormer
from maft_jax.models.precision import matmul_precision

_STRIDE = 4


@flax.struct.dataclass
class BatchProposals:
    """One proposal for every query of every image."""

    mask_logits: Leaf
    """[b, n, h/4, w/4] float32, of the padded input."""
    class_logits: Leaf
    """[b, n, c] float32, without "no object"."""
    scores: Leaf
    """[b, n] float32: the highest probability of a class, times the mean inside of the mask."""


def propose(
    network: Mask2Former | MaskFormer,
    parameters: Mapping,
    pixels: UInt8[Array, "b h w 3"],
    sizes: Int[Array, "b 2"],
    text: Float[Array, "c e"] | None = None,
) -> BatchProposals:
    """Proposals of images that lie in the upper left corners of `pixels`.

    Args:
        network: what `make_module` of a generator's architecture gives.
        pixels: as `ImagePreparation.prepare` resizes them, below and to the right anything; sides
            are multiples of the preparation's divisor.
        sizes: (height, width) of every image.
        text: unit rows of the class names, for a generator that reads them.
    """
    images = normalised(pixels, sizes)
    predictions = network.apply({"params": parameters}, images, text)
    scores = proposal_scores(predictions.mask_logits, predictions.class_logits, sizes)
    return BatchProposals(predictions.mask_logits, predictions.class_logits[..., :-1], scores)


def proposal_scores(
    mask_logits: Float[Array, "b n h w"],
    class_logits: Float[Array, "b n c"],
    sizes: Int[Array, "b 2"],
) -> Float[Array, "b n"]:
    """The official score of instances, at stride 4, where a cell's centre lies in the image."""
    rows, columns = (
        (jnp.arange(side) + 0.5) * _STRIDE < sizes[:, axis, None]
        for axis, side in enumerate(mask_logits.shape[2:])
    )
    inside = (mask_logits > 0) & (rows[:, :, None] & columns[:, None, :])[:, None]
    total = jnp.sum(jax.nn.sigmoid(mask_logits) * inside, axis=(2, 3))
    quality = total / (jnp.sum(inside, axis=(2, 3)) + 1e-6)
    return jax.nn.softmax(class_logits)[..., :-1].max(-1) * quality


def masks_over_images(
    mask_logits: Float[Array, "b n h w"],
    sizes: Int[Array, "b 2"],
    out_size: tuple[int, int],
    *,
    align_corners: bool,
) -> Float[Array, "b n out_h out_w"]:
    """Probabilities in which `out_size` pixels cover each image and nothing of its padding.

    At the image's own size they are those of the official code, which enlarges logits to the padded
    input and crops: with corners on corners (FreeSeg, MAFT), or edges on edges.

    Args:
        sizes: (height, width) of every image, in pixels of the padded input.
    """
    rows, columns = (
        _hats(side, out, sizes[:, axis], align_corners)
        for axis, (side, out) in enumerate(zip(mask_logits.shape[2:], out_size, strict=True))
    )
    product = functools.partial(jnp.einsum, precision=matmul_precision(jnp.float32))
    wide = product("bnhw,bWw->bnhW", mask_logits, columns)
    return jax.nn.sigmoid(product("bnhW,bHh->bnHW", wide, rows))


def _hats(
    side: int, out: int, size: Int[Array, " b"], align_corners: bool
) -> Float[Array, "b out side"]:
    """What each of `side` cells counts for each of `out` pixels that divide an image evenly."""
    pixel = (jnp.arange(out) + 0.5) * (size[:, None] / out) - 0.5
    if align_corners:
        place = pixel * ((side - 1) / (side * _STRIDE - 1))
    else:
        place = (pixel + 0.5) / _STRIDE - 0.5
    place = jnp.clip(place, 0, side - 1)
    return jnp.maximum(0, 1 - jnp.abs(place[..., None] - jnp.arange(side)))
