"""What a set of records holds: counted exactly while shards are written, merged, and drawn."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from input_pipeline.examples import IGNORE
from input_pipeline.records.label_counts import list_names
from input_pipeline.records.record_shards import atomic_write_bytes
from maft_jax.proposals.soft_masks import soften_masks

SUMMARY_FILE = "summary.json"
PICTURE_FILE = "summary.png"

_INSIDE = 128
_NUM_BINS = 20
_MILLION = 1_000_000
_NUM_LISTED = 40


@dataclass
class Statistics:
    """Sums over images; all are integers, so that they do not depend on the order of adding."""

    proposal_counts: Counter[int] = field(default_factory=Counter)
    """Number of images with so many proposals."""
    iou_millionths: Counter[int] = field(default_factory=Counter)
    """By class id: its best IoU, summed over the images that show it."""
    class_images: Counter[int] = field(default_factory=Counter)
    """By class id: images that show it."""
    iou_histogram: Counter[int] = field(default_factory=Counter)
    """Classes of images by their best IoU, in bins of 5 %; the last includes 1."""
    class_pixels: Counter[int] = field(default_factory=Counter)
    """By class id: pixels that show it; IGNORE stands for unlabelled ones."""

    def add(
        self,
        proposals: UInt8[np.ndarray, "n grid_h grid_w"],
        label_map: Int32[np.ndarray, "h w"],
        input_size: tuple[int, int],
    ) -> None:
        """Counts one image; `best_ious` says what is measured."""
        self.proposal_counts[len(proposals)] += 1
        pixels = np.bincount(label_map.ravel() - IGNORE)
        self.class_pixels.update({i + IGNORE: n for i, n in enumerate(pixels.tolist()) if n})
        for class_id, millionths in best_ious(proposals, label_map, input_size).items():
            self.iou_millionths[class_id] += millionths
            self.class_images[class_id] += 1
            self.iou_histogram[min(millionths * _NUM_BINS // _MILLION, _NUM_BINS - 1)] += 1

    def merge(self, other: "Statistics") -> None:
        """Adds the sums of other images."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, dict[str, int]]:
        """Counters with sorted keys, for done-files."""
        return {
            name: {str(key): value for key, value in sorted(getattr(self, name).items())}
            for name in _COUNTERS
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Mapping[str, int]]) -> "Statistics":
        """What `to_json` made; shards of earlier versions have no `class_pixels`."""
        counters = {
            name: Counter({int(key): value for key, value in stored.get(name, {}).items()})
            for name in _COUNTERS
        }
        return cls(**counters)


_COUNTERS = (
    "proposal_counts",
    "iou_millionths",
    "class_images",
    "iou_histogram",
    "class_pixels",
)


def best_ious(
    proposals: UInt8[np.ndarray, "n grid_h grid_w"],
    label_map: Int32[np.ndarray, "h w"],
    input_size: tuple[int, int],
) -> dict[int, int]:
    """IoU of each class of a label map with the proposal that fits it best, in millionths.

    Measured on the proposals' grid, which belongs to a generator that read `input_size` (h, w):
    the class's region is softened as proposals are, both are cut at 128, and grid points of which
    most is unlabelled count nowhere. A region too thin to reach 128 anywhere has IoU 0, since no
    stored mask could show it; but for such regions, ground-truth proposals have recall 1.
    """
    classes = np.unique(label_map[label_map != IGNORE])
    regions = np.stack([label_map == value for value in (IGNORE, *classes)])
    softened = soften_masks(regions, input_size) >= _INSIDE
    labelled = ~softened[0]
    truth = softened[1:, labelled].astype(np.float32)
    found = (proposals[:, labelled] >= _INSIDE).astype(np.float32)
    # Float products of zeros and ones are exact below 2**24 grid points, and fast.
    both = (truth @ found.T).astype(np.int64)
    either = truth.sum(1).astype(np.int64)[:, None] + found.sum(1).astype(np.int64) - both
    millionths = (2 * _MILLION * both + either) // np.maximum(2 * either, 1)
    best = millionths.max(axis=1, initial=0)
    return dict(zip(classes.tolist(), best.tolist(), strict=True))


@dataclass(frozen=True)
class Summary:
    """Statistics of finished shards; `num_shards` of `total_shards` are finished."""

    class_names: tuple[str, ...]
    num_shards: int
    total_shards: int
    num_bytes: int
    statistics: Statistics

    @property
    def num_images(self) -> int:
        return self.statistics.proposal_counts.total()

    @property
    def proposals_per_image(self) -> tuple[float, int, int]:
        """Mean, smallest and largest number."""
        counts = self.statistics.proposal_counts
        total = sum(number * images for number, images in counts.items())
        return total / max(self.num_images, 1), min(counts, default=0), max(counts, default=0)

    @property
    def mask_recall(self) -> float:
        """Mean of `best_ious` over all classes of all images; 0 where nothing is labelled."""
        seen = self.statistics.class_images.total()
        return self.statistics.iou_millionths.total() / _MILLION / max(seen, 1)

    @property
    def class_recalls(self) -> dict[str, float]:
        """Mean of `best_ious` for each class that occurs, in the order of the class list."""
        images = self.statistics.class_images
        return {
            name: self.statistics.iou_millionths[i] / _MILLION / images[i]
            for i, name in enumerate(self.class_names)
            if images[i]
        }

    def describe(self) -> str:
        """A few lines for people."""
        mean, fewest, most = self.proposals_per_image
        recalls = self.class_recalls
        mean_of_classes = sum(recalls.values()) / max(len(recalls), 1)
        lines = [
            f"images               {self.num_images:,} in {self.num_shards:,} shards",
            f"proposals per image  {mean:.1f} ({fewest} to {most})",
            f"bytes                {self.num_bytes:,}, "
            f"{self.num_bytes / max(self.num_images, 1):,.0f} per image",
            f"mask recall          {self.mask_recall:.3f} (mean best IoU over the classes of every "
            f"image; mean of {len(recalls)} classes {mean_of_classes:.3f})",
        ]
        absent = [
            name for i, name in enumerate(self.class_names) if not self.statistics.class_images[i]
        ]
        if absent and self.num_shards == self.total_shards:
            lines.append(
                f"WARNING: no pixel of any label map shows {list_names(absent)} "
                f"({len(absent)} of {len(self.class_names)} classes)"
            )
        if self.num_shards < self.total_shards:
            missing = self.total_shards - self.num_shards
            lines.append(
                f"not finished         {missing:,} of {self.total_shards:,} shards, which other "
                "processes compute"
            )
        return "\n".join(lines)

    def to_json(self) -> dict:
        """The same figures for programs."""
        mean, fewest, most = self.proposals_per_image
        return {
            "num_images": self.num_images,
            "num_shards": self.num_shards,
            "num_bytes": self.num_bytes,
            "proposals_per_image": {"mean": mean, "min": fewest, "max": most},
            "mask_recall": self.mask_recall,
            "class_recalls": self.class_recalls,
            "statistics": self.statistics.to_json(),
        }


def write_summary(folder: epath.PathLike, summary: Summary) -> None:
    """Writes summary.json and summary.png; equal summaries give equal bytes."""
    content = (json.dumps(summary.to_json(), indent=2) + "\n").encode()
    text, picture = epath.Path(folder) / SUMMARY_FILE, epath.Path(folder) / PICTURE_FILE
    if picture.exists() and text.exists() and text.read_bytes() == content:
        return
    atomic_write_bytes(picture, draw_summary(summary))
    atomic_write_bytes(text, content)


def draw_summary(summary: Summary) -> bytes:
    """PNG: histograms of best IoU and of proposals per image, and the recall of each class."""
    # Imported late: worker processes need no pictures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["iou", "number"], ["classes", "classes"]])
    left, right = axes["iou"], axes["number"]
    bins = range(_NUM_BINS)
    left.bar(
        [(i + 0.5) / _NUM_BINS for i in bins],
        [summary.statistics.iou_histogram[i] for i in bins],
        width=0.9 / _NUM_BINS,
    )
    left.axvline(summary.mask_recall, color="black", linestyle="--")
    left.set(
        title=f"mask recall {summary.mask_recall:.3f}",
        xlabel="IoU with the best proposal",
        ylabel="classes of images",
    )
    counts = sorted(summary.statistics.proposal_counts.items())
    right.bar([number for number, _ in counts], [images for _, images in counts])
    right.set(title="proposals per image", xlabel="proposals", ylabel="images")
    right.set_xlim(0, max(summary.proposals_per_image[2], 1) + 1)
    _draw_recalls(axes["classes"], summary.class_recalls)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()


def _draw_recalls(axes, recalls: Mapping[str, float]) -> None:
    """The lowest ones, since those are what a person wants to know."""
    lowest = sorted(recalls.items(), key=lambda item: item[1])[:_NUM_LISTED]
    positions = range(len(lowest))
    axes.bar(positions, [recall for _, recall in lowest])
    axes.set_xticks(positions, [name for name, _ in lowest], rotation=60, ha="right", fontsize=8)
    shown = f"the {len(lowest)} lowest of {len(recalls)}" if len(lowest) < len(recalls) else "all"
    axes.set(title=f"recall of classes ({shown})", ylim=(0, 1), ylabel="mean best IoU")
