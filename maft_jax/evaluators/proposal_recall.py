"""How well the best proposals fit the regions of a data set's classes, counted exactly."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Int64

_MILLION = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class ProposalRecall:
    """Sums over images, which are integers: those of several processes add up in any order."""

    counts: Int64[np.ndarray, "3 c"]
    """Of every class: images that show it, the IoU of its region with the best proposal in
    millionths, and images in which that is at least one half."""

    @classmethod
    def of_nothing(cls, num_classes: int) -> "ProposalRecall":
        return cls(np.zeros((3, num_classes), np.int64))

    def add(self, best_millionths: Mapping[int, int]) -> None:
        """Counts an image, of whose classes `precompute_summary.best_ious` tells the IoU."""
        for label, millionths in best_millionths.items():
            self.counts[:, label] += (1, millionths, 2 * millionths >= _MILLION)

    def scalars(self, unseen: Collection[int] = ()) -> dict[str, float]:
        """Means over regions, of seen and unseen classes apart where there are some of both."""
        labels = np.arange(self.counts.shape[1])
        groups = {"": np.ones(len(labels), bool)}
        if unseen:
            groups |= {"_unseen": np.isin(labels, list(unseen))}
            groups["_seen"] = ~groups["_unseen"]
        scalars = {}
        for name, chosen in groups.items():
            images, millionths, found = self.counts[:, chosen].sum(axis=1).tolist()
            scalars[f"best_iou{name}"] = millionths / _MILLION / max(images, 1)
            scalars[f"recall_at_half{name}"] = found / max(images, 1)
        return scalars
