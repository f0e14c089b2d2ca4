"""What trains the tiny CLIP of shapes world, no loss of masks: CLIP's own, of images and texts.

Each image finds its text among those of the batch, and each text its image.
"""

import jax
from jaxtyping import Array, Float, Int


def contrastive_loss(
    images: Float[Array, "b e"],
    texts: Float[Array, "b e"],
    scale: Float[Array, ""],
    content: Int[Array, " b"],
) -> Float[Array, ""]:
    """Symmetric cross-entropy of `scale` times the similarities, both sides L2-normalised.

    Pairs whose texts have equal `content` are no negatives of each other: the target of a row is
    spread evenly over all of them. With all contents different this is CLIP's loss.
    """
    logits = scale * images @ texts.T
    same = (content[:, None] == content[None, :]).astype(logits.dtype)
    target = same / same.sum(axis=1, keepdims=True)
    by_image = -(target * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    by_text = -(target * jax.nn.log_softmax(logits.T, axis=1)).sum(axis=1)
    return (by_image.mean() + by_text.mean()) / 2
