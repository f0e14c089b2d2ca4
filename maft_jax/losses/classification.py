"""Losses of masks whose class is known: MaskCLIP++'s and Mask-Adapter's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropies(
    logits: Float[Array, "*rows c"], labels: Int[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """Of each row over its classes; 0 where the label is negative."""
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probability, jnp.maximum(labels, 0)[..., None], axis=-1)
    return jnp.where(labels >= 0, -chosen[..., 0], 0.0)


def weights_by_class(labels: Int[Array, "b n"]) -> Float[Array, "b n"]:
    """1 / (classes in the image * masks of that class); 0 for padding, which is negative.

    So every image that has masks counts as much as any other, and in it every class.
    """
    valid = labels >= 0
    same = (labels[:, :, None] == labels[:, None]) & valid[:, None]
    of_class = jnp.maximum(jnp.sum(same, axis=2), 1)
    num_classes = jnp.sum(1 / of_class, axis=1, keepdims=True, where=valid)
    return jnp.where(valid, 1 / (jnp.maximum(num_classes, 1) * of_class), 0.0)


def balanced_cross_entropy_terms(
    logits: Float[Array, "b n c"], labels: Int[Array, "b n"]
) -> Float[Array, " b"]:
    """Each image's mean over its classes of the mean over their masks: MaskCLIP++'s loss.

    Divide the batch's sum by the images that have masks.
    """
    return jnp.sum(cross_entropies(logits, labels) * weights_by_class(labels), axis=1)


def cosine_distance_terms(
    embeddings: Float[Array, "b n e"], targets: Float[Array, "b n e"], valid: Bool[Array, "b n"]
) -> Float[Array, " b"]:
    """Each image's sum of 1 - cosine over its valid pairs of unit vectors."""
    return jnp.sum(1 - jnp.sum(embeddings * targets, axis=-1), axis=1, where=valid)


def best_matches(
    iou: Float[Array, "b g n"], valid: Bool[Array, "b n"], threshold: float, most: int
) -> tuple[Int[Array, "b m"], Int[Array, "b m"], Bool[Array, "b m"]]:
    """Proposals that overlap a ground-truth mask by more than `threshold`, the best first.

    Returns:
        At most `most` proposals, the mask that each overlaps best, and which of these pairs count.
    """
    best = jnp.where(valid, jnp.max(iou, axis=1), 0.0)
    overlap, proposals = jax.lax.top_k(best, min(most, best.shape[1]))
    truths = jnp.take_along_axis(jnp.argmax(iou, axis=1), proposals, axis=1)
    return proposals, truths, overlap > threshold
