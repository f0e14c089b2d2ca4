"""How well the best proposals fit: those of a trained generator beside superpixels, over seeds."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.records.record_source import RecordSource
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.configs.generator_shapes_world import get_config as generator_config
from maft_jax.evaluators.proposal_recall import ProposalRecall
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.proposals.precompute_summary import best_ious
from maft_jax.runtime import markdown
from maft_jax.shapes_world.experiments import RECALL_TABLE, SEEDS
from maft_jax.shapes_world.generator_training import train_generator
from maft_jax.shapes_world.study_results import Estimate
from maft_jax.shapes_world.worlds import draw_world, world_config

TRAINED, SUPERPIXELS = "trained", "superpixels"
_SPLIT = 0
_METRICS = ("best_iou", "recall_at_half")
_MOST = 100
"""Superpixels of a picture that are made."""
_MORE = 2
"""Times as many superpixels as a generator has queries are measured, too."""


def measure_recall(folder: pathlib.Path, seeds: Iterable[int] = SEEDS) -> list[dict[str, Any]]:
    """Records of both generators and all numbers of proposals, seed by seed.

    A seed is that of the pictures, of which the 300 for evaluation are measured, and of the
    generator's training, which reads no label of the first split's unseen classes. Worlds are
    drawn, generators trained and proposals made below `folder` unless they are there.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    queries = generator_config().generator.queries
    numbers = {TRAINED: (queries,), SUPERPIXELS: (queries, _MORE * queries, _MOST)}
    records = []
    for seed in seeds:
        draw_world(folder / "worlds" / f"seed_{seed}", seed)
        trained = {
            "proposals.generator": "mask2former",
            "proposals.path": str(train_generator(folder, _SPLIT, seed)),
        }
        for row, settings in (
            (TRAINED, trained),
            (SUPERPIXELS, {"proposals.generator": SUPERPIXELS}),
        ):
            source = _proposals(folder, seed, settings | {"proposals.num_proposals": _MOST})
            for number in numbers[row]:
                found = {"table": RECALL_TABLE, "row": row, "seed": seed, "split": _SPLIT}
                records.append(found | {"proposals": number, **_recall(source, number)})
    return records


def render_recall(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of what `measure_recall` measured, and what is above what of unseen classes."""
    rows: dict[tuple[str, int], dict[int, Mapping]] = {}
    for record in records:
        of_row = rows.setdefault((record["row"], record["proposals"]), {})
        of_row[record["seed"]] = record
    columns = [f"{metric}_{group}" for metric in _METRICS for group in ("seen", "unseen")]
    lines = [
        [_name(*row), str(len(of_row))]
        + [str(Estimate.of([one[column] for one in of_row.values()])) for column in columns]
        for row, of_row in rows.items()
    ]
    headings = [
        column.replace("_seen", ", seen").replace("_unseen", ", unseen") for column in columns
    ]
    (trained,) = (row for row in rows if row[0] == TRAINED)
    others = [row for row in rows if row[0] == SUPERPIXELS]
    sentences = (_comparison(metric, trained, others, rows) for metric in _METRICS)
    config = generator_config()
    return [
        markdown.paragraph(
            "How well the proposal that fits best fits each class of each picture for evaluation: "
            "the mean IoU, and the share of at least one half, in percent "
            "([generator_training.md](generator_training.md#what-is-measured)). Each seed has its "
            f"own pictures and its own generator of the first split ({config.num_steps} steps). "
            "`--tables=proposal_recall` trains and measures these alone."
        ),
        markdown.table(["", "seeds", *headings], lines),
        markdown.paragraph(f"Of unseen classes, seed by seed: {'; '.join(sentences)}."),
    ]


def _comparison(
    metric: str,
    trained: tuple[str, int],
    others: Sequence[tuple[str, int]],
    rows: Mapping[tuple[str, int], Mapping[int, Mapping]],
) -> str:
    column = f"{metric}_unseen"
    words = []
    for other in others:
        pairs = [
            (rows[trained][seed][column], rows[other][seed][column])
            for seed in sorted(rows[trained].keys() & rows[other].keys())
        ]
        above = sum(ours > theirs for ours, theirs in pairs)
        numbers = ", ".join(f"{100 * ours:.1f} and {100 * theirs:.1f}" for ours, theirs in pairs)
        words.append(f"{_name(*other)} in {above} of {len(pairs)} ({numbers})")
    return f"{metric} of the trained generator is above that of {', of '.join(words)}"


def _name(row: str, number: int) -> str:
    if row == TRAINED:
        return f"trained, {number} queries"
    return f"{row}, the coarsest {number}"


def _proposals(folder: pathlib.Path, seed: int, settings: Mapping[str, Any]) -> RecordSource:
    """Records of the pictures of a seed that are for evaluation."""
    data = folder / "worlds" / f"seed_{seed}"
    changes = {"data.split": "val", **settings}
    job = job_from_config(world_config(data, folder / "cache", seed, (), changes))
    precompute(job)
    return RecordSource(job.folder)


def _recall(source: RecordSource, number: int) -> dict[str, float]:
    """Of so many of the best proposals; all generators read these pictures at their size."""
    counted = ProposalRecall.of_nothing(len(source.class_names))
    for index in range(len(source)):
        record = source.record(index)
        masks = record.proposals[:number]
        counted.add(best_ious(masks, record.label_map, record.image_size))
    unseen = [source.class_names.index(name) for name in unseen_classes(_SPLIT)]
    return counted.scalars(unseen)
