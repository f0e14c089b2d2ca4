"""The experiments of two pages, shapes_world.md and methods_study.md, as changes of the recipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.shapes_world.vocabulary import NUM_SPLITS
from maft_jax.shapes_world.clip_training_config import ClipTrainingConfig

SEEDS = (0, 1, 2)
"""Of pictures, proposals and their order; the CLIP is the same."""

OF_THE_SPLIT = "generator of the split"
"""As a path: the study puts the generator there that it trains without the unseen classes."""

MASKS_OF_THE_RECIPE = "masks of the recipe"
"""As records of an evaluation: the study puts those there that all its other rows have."""

LEARNED_MASKS = {"proposals.generator": "mask2former", "proposals.path": OF_THE_SPLIT}


RECALL_TABLE = "proposal_recall"
"""Of proposals alone, so that it has no experiments."""


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
    held_out_split: int | None = None
    """Its classes are seen ones, but left out of training too, and measured on other pictures: to
    choose settings by, without a look at the unseen ones."""
    first_phase: Mapping[str, Any] | None = None
    """Settings of a run before, with whose modules this one begins; None: there is none."""


def _variants(table: str, setting: str, rows: Mapping[str, Any]) -> tuple[Experiment, ...]:
    """A table over values of one setting; None is the recipe's own."""
    return tuple(
        Experiment(table, row, {} if value is None else {setting: value})
        for row, value in rows.items()
    )


EXPERIMENTS = (
    *(
        Experiment("steps_held_out", str(steps), {"num_steps": steps}, held_out_split=1)
        for steps in (25, 50, 100, 200, 400)
    ),
    Experiment("main", "split 0"),
    Experiment("main", "split 1", split=1),
    Experiment("main", "split 2", split=2),
    Experiment("losses", "both"),
    Experiment("losses", "mask-aware alone", {"loss.distillation_weight": 0.0}),
    Experiment("losses", "distillation alone", {"loss.mask_aware_weight": 0.0}),
    *_variants(
        "mask_start_layer",
        "model.mask_start_layer",
        {"0": 0, "2": None, "3": 3, "4 (masks are never used)": 4},
    ),
    *_variants(
        "distillation_weight", "loss.distillation_weight", {"0.1": None, "1": 1.0, "10": 10.0}
    ),
    *_variants("steps", "num_steps", {"25": 25, "50": None, "100": 100, "200": 200, "400": 400}),
    *_variants(
        "trainable",
        "optimizer.trainable",
        {
            "attention and LayerNorms": None,
            "attention": (r"/attn/",),
            "LayerNorms": (r"/ln_[12]/", r"^ln_post/"),
            "everything": (r".*",),
        },
    ),
    *_variants(
        "loss_kind",
        "loss.mask_aware",
        {"SmoothL1": None, "L1": "l1", "L2": "l2", "KL": "kl"},
    ),
    *_variants("logit_scale", "loss.logit_scale", {"20": 20.0, "100": None}),
    *_variants("proposal_number", "proposals.num_proposals", {"8": 8, "24": None, "48": 48}),
    Experiment("proposal_quality", "mixed"),
    Experiment("proposal_quality", "true regions", {"proposals.kinds": ("regions",)}),
    Experiment("proposal_quality", "superpixels", {"proposals.generator": "superpixels"}),
    Experiment("proposal_quality", "learned masks", LEARNED_MASKS),
    *(
        Experiment("learned_masks", f"split {split}", LEARNED_MASKS, split=split)
        for split in range(NUM_SPLITS)
    ),
)

_SAME_RATE_OF_THE_TOWER = {"optimizer.learning_rate": 1e-3, "optimizer.pretrained_rate": 0.1}
REFERENCE = "MAFT"
"""The method that the others are compared with."""
METHODS = {
    REFERENCE: {},
    "MAFT on true masks": {
        "proposals.kinds": ("regions",),
        "evaluation.records": MASKS_OF_THE_RECIPE,
    },
    "MaskCLIP++": {"method": "maskclippp", **_SAME_RATE_OF_THE_TOWER},
    "LoRA": {"optimizer.lora_rank": 8, "optimizer.learning_rate": 1e-3},
}
"""What each row of docs/methods_study.md changes: steps, images and evaluated masks are equal.

Whole kernels of a tower have the rate that was chosen for MAFT, what begins anew ten times that.
"""

METHODS_TABLE, METHOD_STEPS = "methods", 25
METHOD_EXPERIMENTS = tuple(
    Experiment(METHODS_TABLE, method, {"num_steps": METHOD_STEPS, **changes}, split=split)
    for split in range(NUM_SPLITS)
    for method, changes in METHODS.items()
)
"""Of one page of their own, whose rows have three splits each."""

SECOND_CLIP = "second CLIP"
"""As pretrained weights: the study puts the CLIP there that it trains as SECOND_CLIP_TRAINING."""
SECOND_CLIP_TRAINING = ClipTrainingConfig(seed=1, num_steps=800, batch_size=32, num_pictures=6000)
SECOND_CLIP_TABLE = "methods_second_clip"
CONVNEXT_CLIP = "ConvNeXt CLIP"
CONVNEXT_TRAINING = ClipTrainingConfig(
    tower="convnext",
    num_steps=700,
    batch_size=32,
    num_captions=4,
    num_pictures=5000,
    learning_rate=2e-3,
)
CLIPS_OF_THE_STUDY = {SECOND_CLIP: SECOND_CLIP_TRAINING, CONVNEXT_CLIP: CONVNEXT_TRAINING}
"""What the study trains by itself, by what stands for it as pretrained weights."""
SECOND_CLIP_EXPERIMENTS = tuple(
    dataclasses.replace(
        one,
        table=SECOND_CLIP_TABLE,
        changes={"model.pretrained": SECOND_CLIP, **one.changes},
    )
    for one in METHOD_EXPERIMENTS
)
"""The same splits and seeds, so that the two CLIPs are told apart by nothing else."""

_OF_THE_CONVNEXT = {
    "model.pretrained": CONVNEXT_CLIP,
    "model.mask_start_layer": -1,
    "model.image_size": 0,
    "model.mask_pooling": "soft",
}
_ADAPTER = {
    "method": "mask_adapter",
    "loss.adapter_width": 32,
    "optimizer.learning_rate": 1e-3,
    "optimizer.clip_norm": 1.0,
}
CONVNEXT_METHODS = {
    REFERENCE: {},
    "MaskCLIP++": {
        "method": "maskclippp",
        "loss.alignment": "pseudo_text",
        **_SAME_RATE_OF_THE_TOWER,
    },
    "MAFT+": {"method": "maft_plus", "loss.transfer": "panoptic", **_SAME_RATE_OF_THE_TOWER},
    "MAFT+ without transfer": {"method": "maft_plus", "loss.transfer": "none"},
    "Mask-Adapter": {**_ADAPTER, "loss.adapter_masks": "mixed"},
}
"""As METHODS, with the ConvNeXt, which all below MaskCLIP++ need."""
CONVNEXT_TABLE, CONVNEXT_STEPS, CONVNEXT_SEEDS = "methods_convnext", 50, SEEDS


def _with_the_convnext(method: str, split: int) -> Experiment:
    """Mask-Adapter's two phases share the steps that another method has."""
    steps = {**_OF_THE_CONVNEXT, "num_steps": CONVNEXT_STEPS}
    experiment = Experiment(
        CONVNEXT_TABLE,
        method,
        {**steps, **CONVNEXT_METHODS[method]},
        seeds=CONVNEXT_SEEDS,
        split=split,
    )
    if method != "Mask-Adapter":
        return experiment
    halves = {"num_steps": CONVNEXT_STEPS // 2}
    return dataclasses.replace(
        experiment,
        changes={**experiment.changes, **halves},
        first_phase={**_OF_THE_CONVNEXT, **_ADAPTER, **halves},
    )


CONVNEXT_EXPERIMENTS = tuple(
    _with_the_convnext(method, split) for split in range(NUM_SPLITS) for method in CONVNEXT_METHODS
)
METHOD_TABLES = (METHODS_TABLE, SECOND_CLIP_TABLE, CONVNEXT_TABLE)
