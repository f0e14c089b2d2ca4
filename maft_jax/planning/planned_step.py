"""What a plan must know of a task's train step before it is compiled."""

import dataclasses
from collections.abc import Callable, Sequence

from maft_jax.planning.compiled_step import LoweredStep
from maft_jax.resolved_config import ResolvedConfig

CLASSES_PER_IMAGE = 24
"""Assumed: the most classes of an image; records tell the true number, which matters little."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """The step of a configuration, on any batch that suits the mesh."""

    config: ResolvedConfig
    lower: Callable[[ResolvedConfig], LoweredStep]
    """For a configuration that differs in its batch size alone; raises ValueError where it does
    not suit the architecture."""
    model: str
    image_size: int
    image_flops: int
    """Of training on one image, by formula."""
    assumptions: Sequence[str]
