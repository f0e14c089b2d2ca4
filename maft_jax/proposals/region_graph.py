"""Which regions of a label map touch."""

import numpy as np
from jaxtyping import Integer


def adjacent_pairs(labels: Integer[np.ndarray, "h w"]) -> list[tuple[int, int]]:
    """Sorted pairs (smaller label, larger label) of regions that share a side of a pixel.

    Labels are not negative.
    """
    num_labels = int(labels.max()) + 1
    beside = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    codes = [
        np.minimum(first, second)[first != second].astype(np.int64) * num_labels
        + np.maximum(first, second)[first != second]
        for first, second in beside
    ]
    pairs = np.unique(np.concatenate(codes))
    return [(int(code) // num_labels, int(code) % num_labels) for code in pairs]
