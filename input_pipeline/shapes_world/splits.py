"""Which scenes are for training and which for validation, with their captions and as files."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.shapes_world.captions import describe
from input_pipeline.shapes_world.scenes import Scene, draw_scene

WORLD_VERSION = 1
"""Raised when a scene or caption changes."""
NUM_TRAIN = 1_200
NUM_VAL = 300
MOST_SCENES = 1_000_000
"""Of one split."""

_FIRST_NUMBER = {"train": 0, "val": MOST_SCENES}
_CAPTION_STREAM = 1
_FASTEST = 1
"""Level of PNG compression."""


@dataclass(frozen=True)
class CaptionedScene:
    """A scene with its number, six digits or more, and a sentence about it."""

    example_id: str
    scene: Scene
    caption: str


def draw_split(seed: int, split: str, num_scenes: int) -> Iterator[CaptionedScene]:
    """The first scenes of split "train" or "val": numbers from 0, or from 1,000,000.

    Scenes and captions depend on nothing but the seed (0 .. 2**32 - 1) and their number.

    Raises:
        ValueError: there is no such seed.
    """
    for number in range(_FIRST_NUMBER[split], _FIRST_NUMBER[split] + num_scenes):
        scene = draw_scene(seed, number)
        words = np.random.RandomState([seed, number, _CAPTION_STREAM])
        yield CaptionedScene(f"{number:06d}", scene, describe(scene, words).text)


def check_counts(num_train: int, num_val: int) -> None:
    """Refuses splits without scenes, and those that would run into one another.

    Raises:
        ValueError: names the argument.
    """
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if not 1 <= count <= MOST_SCENES:
            raise ValueError(f"{name}={count}: expected 1 to {MOST_SCENES:,} scenes")


def encode_png(pixels: UInt8[np.ndarray, "h w ..."]) -> bytes:
    """An RGB image [h, w, 3], or a label map [h, w] as an 8-bit grey one."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=_FASTEST)
    return content.getvalue()
