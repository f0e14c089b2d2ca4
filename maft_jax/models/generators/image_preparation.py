"""From an image to what a generator reads, as its own code prepares images.

Official code keeps the aspect ratio and pads; transformers stretches sides to whole multiples. Both
resize uint8 pixels with PIL's bilinear filter, and normalise afterwards.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8
from PIL import Image

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
"""ImageNet's, of pixels 0 to 255."""


@dataclasses.dataclass(frozen=True)
class ImagePreparation:
    """How large an image is read, and how it gets there."""

    stretch: bool
    """Whether sides are stretched to multiples of the divisor; else padding makes them such."""
    divisor: int = 32
    """1: sides are taken as they are."""
    shortest_edge: int | None = None
    longest_edge: int | None = None
    """Of the resized image, unless it has a fixed size; None: the image keeps its size."""
    fixed_size: tuple[int, int] | None = None
    """(height, width) before multiples, whatever the image's are."""
    align_corners: bool = False
    """Whether mask logits are enlarged with corners on corners, as FreeSeg does it."""
    rounds: bool = False
    """Whether the longer side is rounded to the nearest integer, as detectron2 does it; else down.
    """

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized image, before it is padded."""
        if self.fixed_size is not None:
            size = self.fixed_size
        elif self.shortest_edge is None:
            size = height, width
        elif self.rounds:
            size = self._scaled(height, width)
        else:
            size = self._shortest_edge(height, width)
        if self.stretch:
            size = tuple(-(-side // self.divisor) * self.divisor for side in size)
        return size[0], size[1]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the network reads of an image."""
        resized = self.resized_size(height, width)
        return tuple(-(-side // self.divisor) * self.divisor for side in resized)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """The resized pixels; `normalised` pads and normalises them, of several images at once."""
        size = self.resized_size(*image.shape[:2])
        if size == image.shape[:2]:
            return image
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """detectron2's ResizeShortestEdge."""
        scale = self.shortest_edge / min(height, width)
        size = [side * scale for side in (height, width)]
        if self.longest_edge is not None and max(size) > self.longest_edge:
            size = [side * self.longest_edge / max(size) for side in size]
        return int(size[0] + 0.5), int(size[1] + 0.5)

    def _shortest_edge(self, height: int, width: int) -> tuple[int, int]:
        """transformers' rule: the longer side is cut, and the shorter one rounded if it limits."""
        short, long = sorted((height, width))
        edge = self.shortest_edge
        exact = None
        if self.longest_edge is not None and long / short * edge > self.longest_edge:
            exact = self.longest_edge * short / long
            edge = round(exact)
        if short == edge:
            return height, width
        other = int((edge if exact is None else exact) * long / short)
        return (edge, other) if height < width else (other, edge)

    @classmethod
    def of_transformers(cls, settings: Mapping[str, Any], where: str) -> "ImagePreparation":
        """What a preprocessor_config.json states, with the library's defaults.

        Raises:
            ValueError: it normalises otherwise, does not resize, or has sizes of another kind.
        """
        size = settings.get("size", {"shortest_edge": 800, "longest_edge": 1333})
        if isinstance(size, int):  # files of early versions
            size = {"shortest_edge": size, "longest_edge": settings.get("max_size", 1333)}
        divisor = settings.get("size_divisor", settings.get("size_divisibility", 32)) or 1
        _check_normalisation(settings, where)
        names = {("height", "width"), ("shortest_edge",), ("longest_edge", "shortest_edge")}
        if not isinstance(size, Mapping) or tuple(sorted(size)) not in names:
            raise ValueError(
                f"{where}: size: expected height and width, or shortest_edge and perhaps "
                f"longest_edge, got {size!r:.80}"
            )
        for name, value in {"size_divisor": divisor, **size}.items():
            if type(value) is not int or not 1 <= value <= 1 << 14:
                raise ValueError(
                    f"{where}: {name}: expected an integer from 1 to {1 << 14}, got {value!r:.40}"
                )
        if "height" in size:
            fixed = size["height"], size["width"]
            return cls(stretch=True, divisor=divisor, fixed_size=fixed)
        shortest, longest = size["shortest_edge"], size.get("longest_edge")
        return cls(True, divisor, shortest, longest)


OFFICIAL_PREPARATION = ImagePreparation(
    stretch=False, shortest_edge=640, longest_edge=2560, rounds=True
)
"""The official test geometry."""
FCCLIP_PREPARATION = ImagePreparation(
    stretch=False, shortest_edge=800, longest_edge=1333, rounds=True
)
"""That of FC-CLIP and MAFT+."""
ADAPTER_PREPARATION = ImagePreparation(
    stretch=False, shortest_edge=896, longest_edge=896, rounds=True
)
"""That of both with Mask-Adapter."""


def _check_normalisation(settings: Mapping[str, Any], where: str) -> None:
    expected = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 2,
    }
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"{where}: {name}: expected {value}, which generators of this family are "
                f"published with, got {settings[name]!r:.80}"
            )


def normalised(
    pixels: UInt8[Array, "b h w 3"],
    sizes: Int[Array, "b 2"],
    mean: Float32[np.ndarray, " 3"] = PIXEL_MEAN,
    deviation: Float32[np.ndarray, " 3"] = PIXEL_STD,
) -> Float[Array, "b h w 3"]:
    """What the network reads: normalised as ImageNet is, or as given; 0 beyond an image's size."""
    rows, columns = (
        jnp.arange(side) < sizes[:, axis, None] for axis, side in enumerate(pixels.shape[1:3])
    )
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, (pixels.astype(jnp.float32) - mean) / deviation, 0)
