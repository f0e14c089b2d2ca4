"""Class-agnostic proposals without a network: a hierarchy of merged superpixels.

SLIC superpixels (Achanta et al., 2012) are merged two by two, each time the adjacent pair whose
merger adds least to the squared colour error (Ward, 1963). The merges form a binary partition
tree (Salembier and Garrido, 2000), whose nodes are the proposals.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import skimage
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import slic

from input_pipeline.examples import Example
from maft_jax.proposals.generator import Proposals
from maft_jax.proposals.region_graph import adjacent_pairs

_LONG_SIDE = 320
_NUM_SUPERPIXELS = 400
_COMPACTNESS = 30.0

Merge = tuple[int, int]


@dataclass(frozen=True)
class SuperpixelProposals:
    """The ProposalGenerator `superpixels`: the coarsest nodes of the merge tree, whole image first.

    There are fewer than asked for only where the tree has fewer nodes, that is in images of a few
    pixels. Scores are the reciprocal of the place in this order (1, 1/2, 1/3, ...): a coarse region
    precedes a finer one. They say nothing about how well a mask fits an object.
    """

    name: ClassVar[str] = "superpixels"
    fingerprint: ClassVar[str] = f"superpixels 1, scikit-image {skimage.__version__}"

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """Masks at the resolution of the shrunk image, at most `num_proposals`."""
        masks = merge_tree_regions(example.image, num_proposals)
        return Proposals(masks, 1 / np.arange(1, len(masks) + 1, dtype=np.float32))


def merge_tree_regions(
    image: UInt8[np.ndarray, "h w 3"], num_regions: int
) -> Bool[np.ndarray, "n mask_h mask_w"]:
    """The coarsest nodes of the merge tree, as masks of the image shrunk to 320 pixels.

    Any two masks are nested or disjoint.
    """
    small = _shrink(image)
    labels = slic(
        small, n_segments=_NUM_SUPERPIXELS, compactness=_COMPACTNESS, start_label=0, channel_axis=-1
    )
    lab = rgb2lab(small)
    sizes = np.bincount(labels.ravel()).astype(np.float64)
    sums = [np.bincount(labels.ravel(), lab[..., channel].ravel()) for channel in range(3)]
    means = np.stack(sums, axis=1) / sizes[:, None]
    merges = ward_merges(means, sizes, adjacent_pairs(labels))
    return _coarsest_nodes(merges, len(sizes), num_regions)[:, labels]


def ward_merges(
    means: Float[np.ndarray, "leaf channel"],
    sizes: Float[np.ndarray, " leaf"],
    adjacent: Iterable[Merge],
) -> list[Merge]:
    """Pairs of nodes in the order in which they merge; the i-th merge makes node leaves + i.

    Merging regions of n1 and n2 pixels costs n1 n2 / (n1 + n2) times the squared distance of
    their mean colours, which is what it adds to the squared error of a piecewise constant image.
    """
    colors, pixels = list(means), list(sizes)
    neighbours: dict[int, set[int]] = {node: set() for node in range(len(colors))}
    queue: list[tuple[float, int, int]] = []

    def offer(first: int, second: int) -> None:
        neighbours[first].add(second)
        neighbours[second].add(first)
        difference = colors[first] - colors[second]
        weight = pixels[first] * pixels[second] / (pixels[first] + pixels[second])
        heapq.heappush(queue, (float(weight * (difference @ difference)), first, second))

    for pair in sorted(adjacent):
        offer(*pair)
    merges: list[Merge] = []
    while queue:
        _, first, second = heapq.heappop(queue)
        if first not in neighbours or second not in neighbours:
            continue
        around = (neighbours.pop(first) | neighbours.pop(second)) - {first, second}
        total = pixels[first] + pixels[second]
        colors.append((pixels[first] * colors[first] + pixels[second] * colors[second]) / total)
        pixels.append(total)
        merged = len(colors) - 1
        neighbours[merged] = set()
        for node in sorted(around):
            neighbours[node] -= {first, second}
            offer(node, merged)
        merges.append((first, second))
    return merges


def _coarsest_nodes(
    merges: list[Merge], num_leaves: int, num_nodes: int
) -> Bool[np.ndarray, "n leaf"]:
    """Leaves of the root and of the children of its latest merges, at most `num_nodes` nodes."""
    leaves = np.zeros((num_leaves + len(merges), num_leaves), bool)
    leaves[:num_leaves] = np.eye(num_leaves, dtype=bool)
    for i, (first, second) in enumerate(merges):
        leaves[num_leaves + i] = leaves[first] | leaves[second]
    coarse_to_fine = [len(leaves) - 1, *(node for pair in reversed(merges) for node in pair)]
    return leaves[coarse_to_fine[:num_nodes]]


def _shrink(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "mask_h mask_w 3"]:
    height, width = image.shape[:2]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
