"""docs/methods_study.md, made of what the study measured: no result in it is typed by hand."""

import dataclasses
import json
import pathlib
import statistics
import textwrap
from collections.abc import Mapping

import jax

from maft_jax.configs.shapes_world import get_config
from maft_jax.runtime import markdown
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.shapes_world.clip_training import CLIPS
from maft_jax.shapes_world.clip_training_config import ClipTrainingConfig
from maft_jax.shapes_world.experiments import (
    CONVNEXT_EXPERIMENTS,
    CONVNEXT_METHODS,
    CONVNEXT_STEPS,
    CONVNEXT_TABLE,
    CONVNEXT_TRAINING,
    METHOD_EXPERIMENTS,
    METHOD_STEPS,
    METHODS,
    REFERENCE,
    SECOND_CLIP_EXPERIMENTS,
    SECOND_CLIP_TABLE,
    SECOND_CLIP_TRAINING,
    SEEDS,
)
from maft_jax.shapes_world.method_results import FROZEN, LEVEL, MethodResults
from maft_jax.shapes_world.method_tables import (
    claims_table,
    compared,
    differences,
    incomplete,
    provenance,
    results_table,
    summary,
)
from maft_jax.shapes_world.method_times import ROUNDS

METHOD_PAGE_FILE = "methods_study.md"
_CONVNEXT_HEADING, _CONVNEXT_ANCHOR = "With a ConvNeXt", "#with-a-convnext"
_SECOND_HEADING, _SECOND_ANCHOR = "A second CLIP", "#a-second-clip"

CLAIMS = (
    ("MAFT", FROZEN, "unseen", "Mask-aware tuning raises unseen mIoU (MAFT)."),
    ("MAFT", FROZEN, "unseen masks", "It does so by naming masks of unseen classes better."),
    ("MaskCLIP++", FROZEN, "unseen", "Labels without proposals raise unseen mIoU (MaskCLIP++)."),
    ("MaskCLIP++", REFERENCE, "hIoU", "They do so more than MAFT's proposals."),
    (
        "MaskCLIP++",
        FROZEN,
        "unseen masks",
        "Its alignment keeps the vocabulary: masks of unseen classes are named better.",
    ),
    ("MAFT on true masks", REFERENCE, "hIoU", "MAFT's losses, too, learn more from true masks."),
    (
        "MAFT on true masks",
        REFERENCE,
        "unseen masks",
        "True masks teach at least to name true masks of unseen classes.",
    ),
    ("LoRA", FROZEN, "unseen", "Low-rank factors are enough to raise unseen mIoU (LoRA)."),
    ("LoRA", REFERENCE, "hIoU", "They raise more than whole kernels."),
)
"""What should be above what, in which number."""
CONVNEXT_CLAIMS = (
    ("MAFT", FROZEN, "unseen", "MAFT's losses raise unseen mIoU of a tower that pools, too."),
    ("MaskCLIP++", FROZEN, "unseen", "So do labels without proposals (MaskCLIP++)."),
    (
        "MaskCLIP++",
        FROZEN,
        "unseen masks",
        "Its alignment keeps the vocabulary: masks of unseen classes are named better.",
    ),
    ("MAFT+", FROZEN, "unseen", "Ranking, compensation and transfer raise unseen mIoU (MAFT+)."),
    ("MAFT+", REFERENCE, "hIoU", "They do so more than MAFT's losses."),
    (
        "MAFT+ without transfer",
        FROZEN,
        "unseen",
        "Ranking and compensation alone raise unseen mIoU.",
    ),
    (
        "Mask-Adapter",
        FROZEN,
        "unseen",
        "To learn how masks are pooled raises unseen mIoU of a CLIP that stays (Mask-Adapter).",
    ),
    ("Mask-Adapter", FROZEN, "unseen masks", "It names masks of unseen classes better."),
)
"""The same, of the ConvNeXt."""


def render_method_page(study: Mapping) -> str:
    """The page as Markdown, of methods.json and those of other CLIPs, as study_files reads them.

    Raises:
        ValueError: a run is of no experiment, or had other settings than its experiment.
    """
    results = MethodResults(study["runs"], METHOD_EXPERIMENTS)
    parts = [
        *_introduction(study, results),
        *summary(results),
        *_with_both_clips(results, study.get("second_clip")),
        *_what_is_equal(),
        *_table(results),
        *_differences(results),
        *_claims(results),
        *_convnext(study.get("convnext")),
        *_second_clip(study.get("second_clip"), results),
    ]
    return "\n\n".join(parts) + "\n"


def write_method_page(study: Mapping, folder: pathlib.Path) -> None:
    """Writes METHOD_PAGE_FILE to `folder`."""
    text = render_method_page(study)
    with atomic_write(folder / METHOD_PAGE_FILE) as aside:
        aside.write_text(text, encoding="utf-8")


def _introduction(study: Mapping, results: MethodResults) -> list[str]:
    minutes = sum(run["seconds"] for run in study["runs"]) / 60
    return [
        "# Methods against each other",
        markdown.paragraph(
            "Ways to teach CLIP masks ([methods.md](methods.md)) on equal terms, in "
            "[shapes world](shapes_world.md): the same tiny CLIP, pictures, steps and evaluated "
            "masks, and differences that are taken pair by pair. Two runs make a pair if they have "
            f"the same split of classes and the same seed; there are {results.num_pairs}."
        ),
        "    python -m maft_jax.cli.shapes_world_study --workdir=runs/study --tables=methods "
        "--page=docs",
        markdown.paragraph(
            f"{len(study['runs'])} runs, {minutes:.0f} minutes in total, made "
            "[methods.json](shapes_world/methods.json), of which this page is made; no result is "
            f"typed by hand. {provenance(study)}"
        ),
        *incomplete(results),
    ]


def _with_both_clips(first: MethodResults, study: Mapping | None) -> list[str]:
    if study is None:
        return []
    second = MethodResults(study["runs"], SECOND_CLIP_EXPERIMENTS)
    return [
        markdown.paragraph(
            "What the [claims](#claims-here) put above each other, also with [a second CLIP]"
            f"({_SECOND_ANCHOR}), of {second.num_pairs} pairs:"
        ),
        compared(first, second, CLAIMS),
    ]


def _what_is_equal() -> list[str]:
    config = get_config()
    return [
        "## What is equal, and what is not",
        markdown.bullets(
            f"**Steps**: {METHOD_STEPS} of {config.batch_size} pictures, in the same order. The "
            f"recipe has {config.num_steps}; most of MAFT's gain is there after {METHOD_STEPS} "
            "([shapes_world.md](shapes_world.md#number-of-steps)).",
            "**Evaluated masks**: those of the recipe, drawn from the labels of pictures that no "
            "run trains on. MAFT and LoRA train on such masks, too. Mask accuracy is of the "
            "labels' own masks ([metrics.md](metrics.md)).",
            "**Rates**: whole kernels have the rate that held-out classes chose for MAFT, modules "
            "and low-rank factors ten times that, which for LoRA is the better of two in "
            "[methods.md](methods.md#on-shapes-world). No other was tried.",
            f"**Rows** change of configs/shapes_world.py: {_changes(METHODS)}.",
            "**MAFT+ and Mask-Adapter** need a tower that pools from a map, and the tiny CLIP is "
            f"a ViT: they are [below]({_CONVNEXT_ANCHOR}), beside others with another CLIP.",
        ),
    ]


def _changes(methods: Mapping[str, Mapping]) -> str:
    return "; ".join(
        f"*{row}* " + ", ".join(f"`{name}={json.dumps(value)}`" for name, value in changes.items())
        for row, changes in methods.items()
        if changes
    )


def _convnext(study: Mapping | None) -> list[str]:
    heading = f"## {_CONVNEXT_HEADING}"
    if study is None:
        sentence = f"Not run yet: `--tables={CONVNEXT_TABLE}` of the command above does it."
        return [heading, markdown.paragraph(sentence)]
    results = MethodResults(study["runs"], CONVNEXT_EXPERIMENTS)
    quiz = study["runs"][0]["quiz"]
    return [
        heading,
        markdown.paragraph(
            "The same with a tower that pools masks from a map. It is compared with itself alone: "
            "its CLIP is another than that above. Its image tower, with "
            f"{_num_parameters():,} parameters and a map of 4 x 4 cells, was trained for the text "
            f"tower of the other one, on whole pictures, {CONVNEXT_TRAINING.num_steps} steps of "
            f"{CONVNEXT_TRAINING.batch_size}; in the end it names {quiz['object']:.0%} of single "
            "objects ([shapes_world.md](shapes_world.md#the-tiny-clip)). It does not come with the "
            "package; the study trains it, and by itself it is made by"
        ),
        _training_command("convnext", CONVNEXT_TRAINING),
        markdown.bullets(
            f"**Runs**: {_runs(study, results)} "
            "([methods_convnext.json](shapes_world/methods_convnext.json), with "
            f"`--tables={CONVNEXT_TABLE}`). {provenance(study)}",
            f"**Steps**: {CONVNEXT_STEPS} of {get_config().batch_size} pictures. Mask-Adapter has "
            "half of them in each of its phases, and its time is that of the second. Its adapter "
            "and MAFT+'s transfer begin at random, or jump with their first step, and the authors "
            "train them for some 345,000 and 55,000 steps: these rows tell what so few are worth, "
            "not what the methods are.",
            "**Masks** are soft in all rows (`model.mask_pooling=soft`) but Mask-Adapter's own, "
            "whose adapter reads them.",
            f"**Rates** as above; none was tried. **Rows** change {_changes(CONVNEXT_METHODS)}. "
            'Mask-Adapter\'s first phase is the same with `loss.adapter_masks="ground_truth"`.',
        ),
        *incomplete(results),
        *summary(results),
        results_table(results),
        *differences(results),
        "Claims, with this CLIP:",
        claims_table(results, CONVNEXT_CLAIMS),
    ]


def _runs(study: Mapping, results: MethodResults) -> str:
    minutes = sum(run["seconds"] for run in study["runs"]) / 60
    num_seeds = len({run["seed"] for run in study["runs"]})
    seeds = "the seeds" if num_seeds == len(SEEDS) else f"{num_seeds} of the {len(SEEDS)} seeds"
    return (
        f"{len(study['runs'])}, of {results.num_pairs} pairs: the splits and {seeds} of the CLIP "
        f"above, {minutes:.0f} minutes in total"
    )


def _num_parameters() -> int:
    """Of the ConvNeXt."""
    vision = CLIPS[CONVNEXT_TRAINING.tower].vision
    shapes = jax.eval_shape(lambda: vision.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _training_command(folder: str, training: ClipTrainingConfig) -> str:
    given = {
        field.name: getattr(training, field.name)
        for field in dataclasses.fields(training)
        if getattr(training, field.name) != field.default
    }
    flags = textwrap.wrap(" ".join(f"--{name}={value}" for name, value in given.items()), 88)
    command = f"    python -m maft_jax.cli.train_tiny_clip --workdir=runs/{folder}"
    return " \\\n        ".join([command, *flags])


def _second_clip(study: Mapping | None, first: MethodResults) -> list[str]:
    heading = f"## {_SECOND_HEADING}"
    if study is None:
        sentence = (
            "Not run yet, so that all of this is about one CLIP: with "
            f"`--tables={SECOND_CLIP_TABLE}` the command above trains another, of seed "
            f"{SECOND_CLIP_TRAINING.seed}, and makes the same runs with it."
        )
        return [heading, markdown.paragraph(sentence)]
    results = MethodResults(study["runs"], SECOND_CLIP_EXPERIMENTS)
    training, quiz = SECOND_CLIP_TRAINING, study["runs"][0]["quiz"]
    here, above = (
        statistics.mean(one.values(FROZEN, "unseen").values()) for one in (results, first)
    )
    return [
        heading,
        markdown.paragraph(
            "Whether that is about methods or about one CLIP: the same with another, of seed "
            f"{training.seed}, whose training was shorter. In the end it names "
            f"{quiz['object']:.0%} of single objects "
            "([shapes_world.md](shapes_world.md#the-tiny-clip)), and frozen it has an unseen mIoU "
            f"of {here:.1f}, the CLIP above {above:.1f}; steps and rates are those chosen with "
            "that one. The study trains it; by itself it is made by"
        ),
        _training_command("second_clip", training),
        markdown.paragraph(
            f"**Runs**: {_runs(study, results)} "
            "([methods_second_clip.json](shapes_world/methods_second_clip.json), with "
            f"`--tables={SECOND_CLIP_TABLE}`). {provenance(study)}"
        ),
        *incomplete(results),
        *summary(results),
        results_table(results),
        *differences(results),
        "The claims, with this CLIP:",
        claims_table(results, CLAIMS),
    ]


def _table(results: MethodResults) -> list[str]:
    return [
        "## Results",
        markdown.paragraph(
            "mIoU (gt_or_pred) and mean accuracy of masks in percent, mean ± sample standard "
            f"deviation over pairs. Time is that of a step as a multiple of {REFERENCE}'s: median "
            f"over {ROUNDS} rounds in one process, in each of which every method takes a step."
        ),
        results_table(results),
    ]


def _differences(results: MethodResults) -> list[str]:
    return [
        "## Differences, pair by pair",
        markdown.paragraph(
            "Mean of the pairs' differences ± its standard error, and in how many pairs it is "
            "above 0. **Bold** where Student's paired test (two-sided, "
            f"{LEVEL:.0%}) sees a difference. Splits of one seed share pictures, and no allowance "
            "is made for many comparisons, so that what is bold by a little is a hint."
        ),
        *differences(results),
    ]


def _claims(results: MethodResults) -> list[str]:
    return [
        "## Claims, here",
        markdown.paragraph(
            "A claim puts one mean above another. It holds (yes) or does not (no) where the paired "
            "test sees the difference; else it cannot be told."
        ),
        claims_table(results, CLAIMS),
    ]
