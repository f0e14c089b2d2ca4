"""What a proposal generator is: one protocol for networks, segmentation algorithms and files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from input_pipeline.examples import Example

MaskStack = (
    Bool[np.ndarray, "n mask_h mask_w"]
    | UInt8[np.ndarray, "n mask_h mask_w"]
    | Float32[np.ndarray, "n mask_h mask_w"]
)
"""bool, uint8 with 255 = certainly inside, or float32 in [0, 1]; they cover the whole image."""


@dataclass(frozen=True)
class MaskLogits:
    """What a network says of masks before anybody asks at which pixels."""

    values: Float32[np.ndarray, "n h w"]
    """At a quarter of the padded input."""
    input_size: tuple[int, int]
    """(height, width) of the image in it."""
    padded_size: tuple[int, int]
    align_corners: bool
    """Whether their corner points lie on the corner pixels of the padded input."""


@dataclass(frozen=True)
class Proposals:
    """What a generator makes of one image; n may be 0."""

    masks: MaskStack
    scores: Float32[np.ndarray, " n"]
    """Higher is better; any finite scale, comparable within one image."""
    class_logits: Float32[np.ndarray, "n c"] | None = None
    """Over the generator's own vocabulary."""
    input_size: tuple[int, int] | None = None
    """(height, width) at which the generator read the image; None is the image's own size."""
    mask_logits: MaskLogits | None = None
    """In the order of the masks, of a network that was asked about one image."""
    on_grid: bool = False
    """Whether the masks are uint8 at the grid points of the records already; `soft_masks` makes
    that of others."""


@runtime_checkable
class ProposalGenerator(Protocol):
    """Makes proposals for one example at a time; picklable, since worker processes run it.

    `name` is that of the setting, `fingerprint` changes with everything that may change results:
    version of the algorithm, settings, weights, imported files.
    """

    name: str
    fingerprint: str

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """About `num_proposals` proposals; the caller keeps those with the highest scores.

        Must be deterministic: the same example gives the same proposals in every process.
        """
        ...


@runtime_checkable
class BatchedGenerator(ProposalGenerator, Protocol):
    """A network that makes the proposals of many images at a time, spread over devices.

    An image's proposals depend on nothing but the other images of its group, and on those by
    rounding alone: each device runs the same program on a group of `images_per_device`.
    """

    num_devices: int
    images_per_device: int

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "input_h input_w 3"]:
        """The image at the size at which the network reads it, without padding."""
        ...

    def padded_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which it is padded; images of one size can share a batch."""
        ...

    def start(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], num_proposals: int
    ) -> Callable[[], list[Proposals]]:
        """Sends prepared images of one padded size to the devices, which do not wait.

        There are num_devices * images_per_device of them, group after group. What is returned
        waits for the results.
        """
        ...
