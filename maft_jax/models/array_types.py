"""The dimension glossary and the batch that the train step reads.

Letters in einsum strings and in shape annotations mean the same everywhere:

    b batch    n proposal    t patch token    q, k query, key    h w grid or pixels
    c class    d width       e embedding      a head             g ground-truth class of an image
"""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, UInt8

Images = UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]
"""uint8 pixels 0..255, or floats that are already normalised as CLIP expects."""

Masks = (
    UInt8[Array, "b n mask_h mask_w"]
    | Float[Array, "b n mask_h mask_w"]
    | Bool[Array, "b n mask_h mask_w"]
)
"""Proposals: uint8 with 255 = inside, floats in [0, 1], or bool; at any resolution."""

Leaf = Any
"""A jax.Array, or what stands for one in a tree of shapes or of shardings."""


@flax.struct.dataclass
class Batch:
    """One global training batch; the fields are the keys that input_pipeline yields."""

    image: Leaf
    """[b, h, w, 3], Images: the crop, padded."""
    label_map: Leaf
    """[b, h, w] int: contiguous class ids; what is not in present_classes counts as unlabelled."""
    present_classes: Leaf
    """[b, g] int: classes in the label map, padded with -1."""
    proposals: Leaf
    """[b, n, h', w'], Masks: the grid's corners lie on the label map's corner pixels."""
    proposal_valid: Leaf
    """[b, n] bool: False marks padding."""
    teacher_probabilities: Leaf | None = None
    """[b, c] float32: how the frozen CLIP classifies the whole images; None: the step asks it."""
    position: Leaf | None = None
    """[b] int32: of each example in the endless stream of the run's seed, for what a step draws."""
