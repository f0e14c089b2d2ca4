"""All that an evaluation counts: pixels by prediction and label, and ground-truth masks."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from maft_jax.evaluators.confusion import ConfusionTotal
from maft_jax.evaluators.mask_accuracy import MaskCounts, MaskTotal


class EvaluationCounts:
    """Both totals; their state can be saved and taken up again."""

    def __init__(self, num_classes: int):
        self._pixels, self._masks = ConfusionTotal(num_classes), MaskTotal(num_classes)

    @property
    def num_classes(self) -> int:
        return self._pixels.num_classes

    @property
    def confusion(self) -> Int64[np.ndarray, "c1 c1"]:
        """See ConfusionTotal."""
        return self._pixels.confusion

    @property
    def masks(self) -> MaskCounts:
        """See MaskTotal."""
        return self._masks.counts

    def add(self, matrix: np.ndarray, num_pixels: int, masks: np.ndarray) -> None:
        """Adds the counts of a batch of so many pixels.

        Raises:
            ValueError: pixels are missing, or counts are of another number of classes.
        """
        self._pixels.add(matrix, num_pixels)
        self._masks.add(masks)

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes; arrays, to be saved with numpy."""
        return self._pixels.state() | self._masks.state()

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], num_classes: int) -> "EvaluationCounts":
        """Takes up where `state` was taken.

        Raises:
            ValueError: the state is of another number of classes, or is no such state.
        """
        counts = cls(num_classes)
        counts._pixels = ConfusionTotal.from_state(state, num_classes)
        counts._masks = MaskTotal.from_state(state, num_classes)
        return counts
