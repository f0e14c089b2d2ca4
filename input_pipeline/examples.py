"""What an example is, and what the pipeline asks of the places that examples come from."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

IGNORE = -1
"""Label of unlabelled pixels inside the program, whatever value the files use."""

PROPOSAL_STRIDE = 4
"""Pixels of a generator's input for each row and column of a stored proposal."""


@dataclass(frozen=True)
class Example:
    """An image and its label map; labels are contiguous class ids or IGNORE."""

    example_id: str
    image: UInt8[np.ndarray, "h w 3"]
    label_map: Int32[np.ndarray, "h w"]
    instances: Int32[np.ndarray, "h w"] | None = field(default=None, kw_only=True)
    """Numbers from 1 of the instances that pixels belong to, 0 where there is none; None where the
    source does not know them. Records do not keep them."""


@dataclass(frozen=True)
class PreparedExample(Example):
    """An example with its mask proposals, highest score first.

    Proposals are soft masks (255 = certainly inside) on a grid whose corner points lie on the
    corner pixels of the image (align_corners=True); see `proposal_grid_size`.
    """

    proposals: UInt8[np.ndarray, "n grid_h grid_w"]
    scores: Float32[np.ndarray, " n"]
    class_logits: Float32[np.ndarray, "n v"] | None = None
    """Of the generator, over its own vocabulary."""


@runtime_checkable
class ExampleSource(Protocol):
    """Random access to examples; must be picklable, since worker processes read from it."""

    class_names: tuple[str, ...]
    example_ids: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def image_bytes(self, index: int) -> bytes:
        """The encoded image as it came, which `image_files.read_image` decodes."""
        ...

    def signature(self, index: int) -> str:
        """A string that changes when `self[index]` may have changed; cheap, decodes nothing."""
        ...


@runtime_checkable
class PreparedSource(Protocol):
    """Random access to examples with proposals, and the bounds that batches are padded to.

    It must be picklable, since several processes may read from it. `num_proposals` is the most
    proposals of any example, `max_classes_per_image` the most classes present in any label map;
    both are at least 1. `image_sizes` are (height, width) of the upright images. Equal fingerprints
    mean equal data in equal order.
    """

    class_names: tuple[str, ...]
    example_ids: tuple[str, ...]
    fingerprint: str
    num_proposals: int
    max_classes_per_image: int
    image_sizes: Int32[np.ndarray, "examples 2"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PreparedExample: ...


def proposal_grid_size(height: int, width: int) -> tuple[int, int]:
    """Grid of the proposals of a generator that read height x width: a quarter, rounded up."""
    return -(-height // PROPOSAL_STRIDE), -(-width // PROPOSAL_STRIDE)
