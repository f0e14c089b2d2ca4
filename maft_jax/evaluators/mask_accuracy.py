"""Mask accuracy: how many ground-truth masks, each read by the tower alone, are given their class.

A mask is all that an image shows of one class. No generator takes part, so that it tells how well
masks are classified, and nothing of how good proposals are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int32, Int64

from input_pipeline.examples import IGNORE
from maft_jax.evaluators.zero_shot import unseen_mask

MASKS_MULTIPLE = 32
"""Data sets are read with as many masks as this divides, so that they share programs."""

MaskCounts = Int64[np.ndarray, "c 2"]
"""Of each class: the masks that images show, and those of them that were given this class."""


def classes_shown(
    label_map: Int32[Array, "b h w"], num_classes: int, most: int
) -> Int32[Array, "b r"]:
    """The classes of every label map in rising order, then IGNORE; `most` or a few more."""
    most = -(-most // MASKS_MULTIPLE) * MASKS_MULTIPLE

    def of_one(labels):
        places = jnp.where(labels == IGNORE, num_classes, labels).ravel()
        shown = jnp.zeros(num_classes, bool).at[places].set(True, mode="drop")
        return jnp.nonzero(shown, size=most, fill_value=IGNORE)[0].astype(jnp.int32)

    return jax.vmap(of_one)(label_map)


def count_masks(
    probabilities: Float[Array, "b r c"], classes: Int32[Array, "b r"], valid: Bool[Array, " b"]
) -> Int32[Array, "c 2"]:
    """Of a batch: masks by their class, and those whose most probable class it is.

    Args:
        classes: of the masks; IGNORE is none.
        valid: images that count.
    """
    num_classes = probabilities.shape[-1]
    correct = jnp.argmax(probabilities, axis=-1) == classes
    places = jnp.where(valid[:, None] & (classes != IGNORE), classes, num_classes)
    added = jnp.stack([jnp.ones_like(correct), correct], axis=-1).astype(jnp.int32)
    return jnp.zeros((num_classes, 2), jnp.int32).at[places].add(added, mode="drop")


class MaskTotal:
    """Counts of many batches, in int64; its state can be saved and taken up again."""

    def __init__(self, num_classes: int):
        self._counts = np.zeros((num_classes, 2), np.int64)

    @property
    def counts(self) -> MaskCounts:
        """A copy of the counts."""
        return self._counts.copy()

    def add(self, counts: np.ndarray) -> None:
        """Adds the counts of a batch, or of other images.

        Raises:
            ValueError: they are no counts of masks, or of another number of classes.
        """
        self._counts += checked_mask_counts(counts, len(self._counts), "MaskTotal.add")

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes; arrays, to be saved with numpy."""
        return {"masks": self.counts}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], num_classes: int) -> "MaskTotal":
        """Takes up where `state` was taken.

        Raises:
            ValueError: the state is of another number of classes, or is no such state.
        """
        if "masks" not in state:
            raise ValueError(
                f"MaskTotal.from_state: expected the array 'masks', got {sorted(state)}"
            )
        total = cls(num_classes)
        total.add(state["masks"])
        return total


def checked_mask_counts(counts: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """The counts.

    Raises:
        ValueError: another shape, no integers, or not as many masks as are right; begins with
            `where`.
    """
    counts = np.asarray(counts)
    if counts.shape != (num_classes, 2) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"{where}: expected integer counts of masks, shape {(num_classes, 2)}, got "
            f"{counts.dtype} {counts.shape}; was it counted with another class list?"
        )
    if (counts < 0).any() or (counts[:, 1] > counts[:, 0]).any():
        raise ValueError(f"{where}: expected masks and how many of them are right, got {counts}")
    return counts


@dataclass(frozen=True, eq=False)
class MaskAccuracy:
    """Fractions; nan where there is nothing to measure."""

    accuracy: Float64[np.ndarray, " c"]
    """Share of a class's masks that are given it; nan for classes that no image shows."""
    mask_accuracy: float
    """Share of all masks that are given their class."""
    mean_mask_accuracy: float
    """Mean over the classes that images show."""
    seen_mask_accuracy: float
    """That of the seen classes; nan where a data set has no zero-shot split."""
    unseen_mask_accuracy: float


def mask_accuracy(counts: MaskCounts, unseen: Sequence[int] = ()) -> MaskAccuracy:
    """All of it, from counts; `unseen` are class ids.

    Raises:
        ValueError: an id that is no class, or twice.
    """
    masks, correct = counts.T
    accuracy = np.divide(correct, masks, out=np.full(len(masks), np.nan), where=masks > 0)
    is_unseen = unseen_mask(unseen, len(masks))
    split = bool(len(unseen))
    return MaskAccuracy(
        accuracy,
        float(correct.sum() / masks.sum()) if masks.any() else float("nan"),
        _mean(accuracy),
        _mean(accuracy[~is_unseen]) if split else float("nan"),
        _mean(accuracy[is_unseen]) if split else float("nan"),
    )


def _mean(accuracy: np.ndarray) -> float:
    there = accuracy[~np.isnan(accuracy)]
    return float(there.mean()) if len(there) else float("nan")
