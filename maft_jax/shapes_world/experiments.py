"""The experiments of docs/shapes_world.md: what each changes in configs/shapes_world.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
"""Of pictures, proposals and their order; the CLIP is the same."""


@dataclass(frozen=True)
class Experiment:
    """One row of one table."""

    table: str
    row: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings by dotted name."""
    seeds: tuple[int, ...] = SEEDS
    split: int = 0
    """Which zero-shot split is left out of training."""
    every_steps: int = 0
    """Steps between evaluations; 0 = before the first and after the last."""
    held_out_split: int | None = None
    """Its classes are seen ones, but left out of training too, and measured on other pictures: to
    choose settings by, without a look at the unseen ones."""


_EVERYTHING = (r".*",)
_PATCHES = (r"^patch_kernel", r"_embedding$")

EXPERIMENTS = (
    Experiment(
        "steps_held_out",
        "held-out seen classes",
        {"num_steps": 400},
        every_steps=50,
        held_out_split=1,
    ),
    Experiment("main", "split 0"),
    Experiment("main", "split 1", split=1),
    Experiment("main", "split 2", split=2),
    Experiment("losses", "distillation alone", {"loss.mask_aware_weight": 0.0}),
    Experiment("losses", "mask-aware alone", {"loss.distillation_weight": 0.0}),
    Experiment("losses", "both"),
)
