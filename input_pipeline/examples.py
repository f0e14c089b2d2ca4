"""What an example is, and what the pipeline asks of the places that examples come from."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

IGNORE = -1
"""Label of unlabelled pixels inside the program, whatever value the files use."""

PROPOSAL_STRIDE = 4
"""Image pixels for each row and column of a stored proposal; see `proposal_grid_size`."""


@dataclass(frozen=True)
class Example:
    """An image and its label map; labels are contiguous class ids or IGNORE."""

    example_id: str
    image: UInt8[np.ndarray, "h w 3"]
    label_map: Int32[np.ndarray, "h w"]


@dataclass(frozen=True)
class PreparedExample(Example):
    """An example with its mask proposals.

    Proposals are soft masks (255 = certainly inside) on the grid of `proposal_grid_size`, whose
    corner points lie on the corner pixels of the image (align_corners=True).
    """

    proposals: UInt8[np.ndarray, "n grid_h grid_w"]


@runtime_checkable
class ExampleSource(Protocol):
    """Random access to examples; must be picklable, since worker processes read from it."""

    class_names: tuple[str, ...]
    example_ids: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def signature(self, index: int) -> str:
        """A string that changes when `self[index]` may have changed; cheap, decodes nothing."""
        ...


@runtime_checkable
class PreparedSource(Protocol):
    """Random access to examples with proposals, and the bounds that batches are padded to.

    `num_proposals` is the most proposals of any example, `max_classes_per_image` the most classes
    present in any label map. Equal fingerprints mean equal data in equal order.
    """

    class_names: tuple[str, ...]
    example_ids: tuple[str, ...]
    fingerprint: str
    num_proposals: int
    max_classes_per_image: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PreparedExample: ...


def proposal_grid_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the proposals of an image: a quarter of its size, rounded up."""
    return -(-height // PROPOSAL_STRIDE), -(-width // PROPOSAL_STRIDE)
