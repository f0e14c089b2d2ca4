"""Proposals read off the label map: for debugging, and as upper bounds."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar

import numpy as np
import skimage
from jaxtyping import Bool, Int, Int32
from skimage.measure import label as connected_components
from skimage.segmentation import expand_labels

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals.deformation import deform_to_iou
from maft_jax.proposals.generator import Proposals
from maft_jax.proposals.region_graph import adjacent_pairs

_LONG_SIDE = 2048
"""Longer label maps are read at this resolution, so that masks of any photo fit into memory."""
_JITTER_IOU = (0.5, 0.95)
_PARTS = (2, 4)
"""Fewest and most pieces that a region is cut into."""
_RANDOM_PIECES = (3, 8)
"""Fewest and most pieces that the whole picture is cut into."""
_SMALLEST_REGION = 64
"""Fewest pixels of what is jittered, united or cut: a few grid points of a stored proposal."""
_NEIGHBOUR_DISTANCE = 8
"""Half the width, in pixels, of a seam without large regions across which two are neighbours."""

Mask = Bool[np.ndarray, "h w"]
ScoredMasks = Iterator[tuple[Mask, float]]


@dataclass(frozen=True)
class Region:
    """The pixels of `numbers` that are `number`; a mask is made when asked for."""

    numbers: Int[np.ndarray, "h w"]
    number: int

    def mask(self) -> Mask:
        return self.numbers == self.number


@dataclass(frozen=True)
class Regions:
    """What a label map consists of: pairs (number, pixels) of classes and components."""

    label_map: Int32[np.ndarray, "h w"]
    components: Int[np.ndarray, "h w"]
    """Every component, those of classes in one piece too, numbered from 1; 0 is unlabelled."""
    classes: Int[np.ndarray, "classes 2"]
    """Each class present, largest first."""
    pieces: Int[np.ndarray, "pieces 2"]
    """Each component of classes in several, largest first."""

    def ordered(self, smallest: int = 1) -> Iterator[Region]:
        """Classes, then pieces, of at least `smallest` pixels."""
        for numbers, found in ((self.label_map, self.classes), (self.components, self.pieces)):
            for number, num_pixels in found:
                if num_pixels >= smallest:
                    yield Region(numbers, int(number))


@dataclass(frozen=True)
class GroundTruthProposals:
    """The ProposalGenerator `ground_truth`; `kinds` are keys of KINDS.

    The kinds take turns until there are `num_proposals`; one that has no more is passed over.
    `jittered` and `parts` go through the regions again and again; they and `unions` leave out
    regions of fewer than 64 pixels. `random` has no end either. Scores are the IoU with the region
    that a mask was made from (the larger one of a union), 1 for `regions`; those of `random`, which
    are made from none, the best IoU with a class. Randomness depends on the kind and the example's
    id alone.
    """

    kinds: tuple[str, ...] = ("regions",)
    name: ClassVar[str] = "ground_truth"

    def __post_init__(self):
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(
                f"config.proposals.kinds: expected one or more of {list(KINDS)}, got "
                f"{list(self.kinds)}"
            )

    @property
    def fingerprint(self) -> str:
        """Version of the algorithm, and the kinds, whose order is that of their turns."""
        return f"ground_truth 2, {' '.join(self.kinds)}, scikit-image {skimage.__version__}"

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """At most `num_proposals` masks; none where no pixel is labelled."""
        label_map, instances = _subsample(example.label_map), example.instances
        regions = find_regions(label_map, None if instances is None else _subsample(instances))
        made = [KINDS[kind](regions, _random(kind, example.example_id)) for kind in self.kinds]
        chosen = list(islice(_take_turns(made), num_proposals))
        masks = np.array([mask for mask, _ in chosen], bool).reshape(-1, *label_map.shape)
        return Proposals(masks, np.array([score for _, score in chosen], np.float32))


def find_regions(
    label_map: Int32[np.ndarray, "h w"], instances: Int32[np.ndarray, "h w"] | None = None
) -> Regions:
    """The label map's classes and components; none where no pixel is labelled.

    An instance is one component, whatever it touches and however many pieces of it are to be seen.
    """
    classes, pixels = np.unique(label_map[label_map != IGNORE], return_counts=True)
    class_order = np.argsort(-pixels, kind="stable")
    components = _components(label_map, instances)
    areas = np.bincount(components.ravel())
    class_of = np.full(len(areas), IGNORE)
    class_of[components] = label_map
    # The first is what is not labelled.
    order = 1 + np.argsort(-areas[1:], kind="stable")
    in_pieces = areas[order] < pixels[np.searchsorted(classes, class_of[order])]
    pieces = order[in_pieces]
    return Regions(
        label_map,
        components,
        np.stack([classes[class_order], pixels[class_order]], axis=1),
        np.stack([pieces, areas[pieces]], axis=1),
    )


def _components(
    label_map: Int32[np.ndarray, "h w"], instances: Int32[np.ndarray, "h w"] | None
) -> Int[np.ndarray, "h w"]:
    """Without gaps from 1; 0 is what is not labelled."""
    if instances is None:
        return connected_components(label_map, background=IGNORE, connectivity=2)
    is_one = (instances > 0) & (label_map != IGNORE)
    others = np.where(is_one, IGNORE, label_map)
    numbers = connected_components(others, background=IGNORE, connectivity=2)
    numbers = np.where(is_one, numbers.max() + instances, numbers)
    return np.searchsorted(np.unique(np.append(numbers, 0)), numbers)


def _as_they_are(regions: Regions, _: np.random.Generator) -> ScoredMasks:
    for region in regions.ordered():
        yield region.mask(), 1.0


def _jittered(regions: Regions, random: np.random.Generator) -> ScoredMasks:
    """Each region in turn, again and again, moved, scaled and with another boundary."""
    for region in cycle(regions.ordered(_SMALLEST_REGION)):
        yield deform_to_iou(region.mask(), random.uniform(*_JITTER_IOU), random)


def _unions(regions: Regions, _: np.random.Generator) -> ScoredMasks:
    """Two neighbouring components each; first those whose smaller one is largest."""
    components = regions.components
    areas = np.bincount(components.ravel())
    large = np.where(areas[components] >= _SMALLEST_REGION, components, 0)
    pairs = [pair for pair in adjacent_pairs(expand_labels(large, _NEIGHBOUR_DISTANCE)) if pair[0]]
    for pair in sorted(pairs, key=lambda pair: (-min(areas[list(pair)]), pair)):
        smaller, both = min(areas[list(pair)]), sum(areas[list(pair)])
        yield (components == pair[0]) | (components == pair[1]), 1 - smaller / both


def _parts(regions: Regions, random: np.random.Generator) -> ScoredMasks:
    """Each region in turn, again and again, cut along what is nearest to two to four points."""
    for region in cycle(regions.ordered(_SMALLEST_REGION)):
        pixels = np.argwhere(region.mask())
        num_parts = random.integers(*_PARTS, endpoint=True)
        points = pixels[random.choice(len(pixels), num_parts, replace=False)]
        nearest = np.argmin([((pixels - point) ** 2).sum(axis=1) for point in points], axis=0)
        for part in range(num_parts):
            piece = np.zeros(region.numbers.shape, bool)
            piece[tuple(pixels[nearest == part].T)] = True
            yield piece, np.mean(nearest == part)


def _random_pieces(regions: Regions, random: np.random.Generator) -> ScoredMasks:
    """The whole picture, again and again, cut along what is nearest to three to eight points."""
    label_map = regions.label_map
    num_classes = len(regions.classes)
    positions = np.full(label_map.max() + 2, num_classes)  # the last entry is that of IGNORE
    positions[regions.classes[:, 0]] = np.arange(num_classes)
    class_at = positions[label_map]
    while num_classes:
        num_pieces = random.integers(*_RANDOM_PIECES, endpoint=True)
        nearest = _nearest_point(random.integers(label_map.shape, size=(num_pieces, 2)), label_map)
        joint = nearest * (num_classes + 1) + class_at
        shared = np.bincount(joint.ravel(), minlength=num_pieces * (num_classes + 1))
        shared = shared.reshape(num_pieces, num_classes + 1)
        areas = shared.sum(axis=1, keepdims=True)
        ious = shared[:, :-1] / (areas + regions.classes[:, 1] - shared[:, :-1])
        for piece in np.flatnonzero(areas):
            yield nearest == piece, ious[piece].max()


def _nearest_point(
    points: Int[np.ndarray, "points 2"], like: Int32[np.ndarray, "h w"]
) -> Int[np.ndarray, "h w"]:
    """Index of the point (row, column) nearest to each pixel; the first of equally near ones."""
    rows, columns = np.ogrid[: like.shape[0], : like.shape[1]]
    nearest = np.zeros(like.shape, np.int64)
    least = np.full(like.shape, np.iinfo(np.int64).max)
    for index, (row, column) in enumerate(points):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        nearest[distance < least] = index
        np.minimum(least, distance, out=least)
    return nearest


KINDS: dict[str, Callable[[Regions, np.random.Generator], ScoredMasks]] = {
    "regions": _as_they_are,
    "jittered": _jittered,
    "unions": _unions,
    "parts": _parts,
    "random": _random_pieces,
}


def _take_turns(iterators: list[ScoredMasks]) -> ScoredMasks:
    while iterators:
        for iterator in list(iterators):
            try:
                yield next(iterator)
            except StopIteration:
                iterators.remove(iterator)


def _random(kind: str, example_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{kind}/{example_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _subsample(label_map: Int32[np.ndarray, "h w"]) -> Int32[np.ndarray, "small_h small_w"]:
    """Label maps longer than the limit at the limit: the label in the middle of each new pixel."""
    height, width = label_map.shape
    scale = max(1.0, max(height, width) / _LONG_SIDE)
    size = max(1, round(height / scale)), max(1, round(width / scale))
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    return label_map[rows[:, None], columns]
