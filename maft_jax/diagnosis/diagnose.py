"""From the configuration to a folder with the figures and numbers of a diagnosis."""

import dataclasses
import datetime
import functools
import json
import logging
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from input_pipeline.example_range import ExampleRange
from maft_jax.config import Config
from maft_jax.config.evaluation_section import EvaluationRoots
from maft_jax.diagnosis import pictures
from maft_jax.diagnosis.collection import crops_of_false_positives, measure
from maft_jax.diagnosis.report import summarise
from maft_jax.evaluators.data_sets import EvaluationSet, check_roots
from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.weights import EvaluatedWeights, read_evaluated_weights
from maft_jax.runtime import sharding
from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.runtime.versions import versions
from maft_jax.runtime.workdir import make_writable
from maft_jax.state.restored_run import is_training_run

NUMBERS_FILE = "diagnosis.json"

logger = logging.getLogger(__name__)


def diagnose(
    config: Config,
    out: epath.Path,
    *,
    num_images: int = 50,
    dataset: str = "",
    num_false_positives: int = 6,
) -> dict[str, Any]:
    """Measures frozen and tuned weights on the first images of a data set; returns the numbers.

    Without config.checkpoint there is one column, config.model.pretrained. Files in `out`, which
    is made if needed, are replaced once everything is computed.

    Args:
        num_images: 0 = all.
        dataset: which of config.evaluation; needed where there are several.

    Raises:
        ValueError: weights, data or settings cannot work.
    """
    make_writable(out, "--out")
    config = _with_one_data_set(config, dataset, num_images)
    check_roots(config)
    mesh = sharding.make_mesh(config.mesh)
    weights = _read_columns(config, mesh)
    last = list(weights.values())[-1]
    evaluation = Evaluation(last.config, last.clip, last.parameters["text"], mesh)
    data = _chosen(evaluation, dataset)
    columns = {}
    for name, column in weights.items():
        tower = column.tower
        tower = jax.device_put(
            tower, sharding.tree_shardings(tower, mesh, last.clip.vision.sharding_rules)
        )
        columns[name] = functools.partial(evaluation.class_probabilities, data, tower)
    images = ExampleRange(data.source, 0, len(data.source))
    with evaluation.batches(data, images) as batches:
        measured = measure(data.source, data.name, columns, batches)
    numbers = summarise(measured, num_false_positives) | {
        "provenance": {
            "weights": {name: column.origin for name, column in weights.items()},
            **evaluation.depends_on(data),
            "records": str(data.folder),
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    }
    crops = crops_of_false_positives(data.source, measured, num_false_positives)
    files = {
        "score_against_iou.png": pictures.draw_score_against_iou(measured),
        "score_against_iou_of_classes.png": pictures.draw_classes(measured),
        "similarity.png": pictures.draw_similarity(measured),
        "false_positives.png": pictures.draw_false_positives(measured, crops),
        NUMBERS_FILE: (json.dumps(numbers, indent=2, allow_nan=False) + "\n").encode(),
    }
    for name, content in files.items():
        atomic_write_bytes(out / name, content)
    return numbers


def describe(numbers: dict[str, Any]) -> str:
    """A line for each column: what changed, in the fewest numbers."""
    lines = []
    for name, column in numbers["columns"].items():
        correlation, similarity = column["score_against_iou"], column["similarity"]
        wrong = column["false_positives"]["share_of_judged_and_confident"]
        lines.append(
            f"{name:>6}: score against IoU, Pearson {_number(correlation['pearson'])}, Spearman "
            f"{_number(correlation['spearman'])} | similarity of proposals "
            f"{_number(similarity['mean_cosine'])} | confident false positives {_number(wrong)}"
        )
    return "\n".join(lines)


def _with_one_data_set(config: Config, dataset: str, num_images: int) -> Config:
    """The configuration with the roots of the other data sets and the other images left out."""
    given = {
        name: root for name, root in dataclasses.asdict(config.evaluation.roots).items() if root
    }
    if not config.evaluation.has_data_sets:
        raise ValueError(
            "config.evaluation.roots: no data set; say where one lies, such as "
            "--config.evaluation.roots.voc2012=VOC2012"
        )
    if config.evaluation.task != "semantic":
        raise ValueError(
            f"config.evaluation.task={config.evaluation.task}: a diagnosis is of masks and label "
            "maps; leave it out"
        )
    if dataset and given and dataset not in given and not config.evaluation.records:
        raise ValueError(
            f"--dataset={dataset}: expected one of {list(given)}, those of which "
            "config.evaluation.roots says where they lie"
        )
    if not dataset and len(given) > 1:
        raise ValueError(
            f"config.evaluation.roots has {list(given)}; say which one to diagnose, such as "
            f"--dataset={next(iter(given))}"
        )
    roots = {name: root for name, root in given.items() if name == dataset or not dataset}
    evaluation = dataclasses.replace(
        config.evaluation, roots=EvaluationRoots(**roots), max_images=num_images
    )
    return dataclasses.replace(config, evaluation=evaluation)


def _read_columns(config: Config, mesh: Mesh) -> dict[str, EvaluatedWeights]:
    """Frozen and tuned, or what there is of them, read in the same way."""

    def read(frozen: bool) -> EvaluatedWeights:
        evaluation = dataclasses.replace(config.evaluation, frozen=frozen)
        return read_evaluated_weights(dataclasses.replace(config, evaluation=evaluation), mesh)

    if not config.checkpoint:
        return {"clip": read(frozen=False)}
    if not config.model.pretrained and not is_training_run(config.checkpoint):
        raise ValueError(
            f"config.checkpoint={config.checkpoint}: a file does not say what it was tuned from, "
            "with which it is compared; give that CLIP as --config.model.pretrained=ViT-B-16.pt"
        )
    if config.evaluation.frozen:
        return {"frozen": read(frozen=True)}
    weights = {"frozen": read(frozen=True), "tuned": read(frozen=False)}
    texts = [fingerprint(column.parameters["text"]) for column in weights.values()]
    if texts[0] != texts[1]:
        logger.warning(
            "the frozen and the tuned weights have different text towers; class names are embedded "
            "with the tuned one's, so check that these weights belong together"
        )
    return weights


def _chosen(evaluation: Evaluation, dataset: str) -> EvaluationSet:
    found = {data.name: data for data in evaluation.data_sets}
    if not dataset and len(found) == 1:
        return next(iter(found.values()))
    if dataset not in found:
        raise ValueError(
            f"--dataset={dataset}: expected one of {list(found)}, of which there are records"
        )
    return found[dataset]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
