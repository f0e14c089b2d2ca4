"""Runs the experiments of the studies in docs, and keeps what they measured as JSON."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from input_pipeline.shapes_world.vocabulary import CLASS_NAMES, unseen_classes
from maft_jax.config import Config
from maft_jax.configs.shapes_world import get_config
from maft_jax.convert.generator_files import WEIGHTS
from maft_jax.evaluators.during_training import RESULTS_FOLDER
from maft_jax.evaluators.results import EvaluationResult, read_result
from maft_jax.evaluators.semantic import mean_ious
from maft_jax.evaluators.zero_shot import harmonic_mean, unseen_mask
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.runtime.sealed_files import read_sealed_json, write_sealed_json
from maft_jax.runtime.versions import versions
from maft_jax.shapes_world.clip_training import (
    CLIPS,
    CURVE_FILE,
    WEIGHTS_FILE,
    architecture,
    train_clip,
)
from maft_jax.shapes_world.experiments import (
    CLIPS_OF_THE_STUDY,
    CONVNEXT_EXPERIMENTS,
    CONVNEXT_TABLE,
    EXPERIMENTS,
    MASKS_OF_THE_RECIPE,
    METHOD_EXPERIMENTS,
    METHOD_TABLES,
    METHODS_TABLE,
    OF_THE_SPLIT,
    RECALL_TABLE,
    REFERENCE,
    SECOND_CLIP_EXPERIMENTS,
    SEEDS,
    Experiment,
)
from maft_jax.shapes_world.generator_training import train_generator
from maft_jax.shapes_world.method_page import METHOD_PAGE_FILE, write_method_page
from maft_jax.shapes_world.method_times import relative_times, step_seconds
from maft_jax.shapes_world.page import PAGE_FILE, write_page
from maft_jax.shapes_world.proposal_recall import measure_recall
from maft_jax.shapes_world.study_files import OF_METHODS, read_methods, read_study, write_records
from maft_jax.shapes_world.worlds import DATASET, draw_world, world_config
from maft_jax.state.restored_run import MODULES
from maft_jax.training.train_loop import train_and_evaluate
from maft_jax.weights import BUILT_IN

DEVELOPMENT_SEED = 1000
"""Of the world whose pictures settings are chosen by."""

logger = logging.getLogger(__name__)


def run_study(folder: pathlib.Path, tables: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Runs what `folder` does not hold yet; returns one record per experiment and seed.

    RECALL_TABLE has records of its own, one per row and seed.

    Rows of different tables that are the same run are trained once.

    Args:
        tables: only their experiments; empty = all.

    Raises:
        ValueError: there is no such table.
        TrainingInterrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    experiments = [*EXPERIMENTS, *_experiments_of_methods()]
    known = dict.fromkeys([*(experiment.table for experiment in experiments), RECALL_TABLE])
    if unknown := sorted(set(tables) - set(known)):
        raise ValueError(f"tables {unknown}: expected some of {list(known)}")
    wanted = tables or known
    chosen = [experiment for experiment in experiments if experiment.table in wanted]
    with _programs_compiled_once():
        records = _with_times(_run_missing(chosen, folder), folder)
        return records + (measure_recall(folder) if RECALL_TABLE in wanted else [])


@contextlib.contextmanager
def _programs_compiled_once() -> Iterator[None]:
    """Runs share compiled programs, which jax keeps without digests: none survives the process."""
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory(prefix="maft_jax_compiled_") as compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", before)
            compilation_cache.reset_cache()  # which would go on in the folder that is removed


def _run_missing(chosen: Sequence[Experiment], folder: pathlib.Path) -> list[dict[str, Any]]:
    runs = sorted(
        ((experiment, seed) for experiment in chosen for seed in experiment.seeds), key=_turn
    )
    records = []
    started, num_new = time.monotonic(), 0
    for number, (experiment, seed) in enumerate(runs, start=1):
        path = folder / "results" / f"{_name(experiment, seed, folder)}.json"
        measured = read_sealed_json(path)
        if measured is None:
            logger.info(
                "%d of %d: %s, %s, seed %d",
                number,
                len(runs),
                experiment.table,
                experiment.row,
                seed,
            )
            measured = _run(experiment, seed, folder, path)
            num_new += 1
            each = (time.monotonic() - started) / num_new
            logger.info(
                "%.0f s a run; at most %.0f min left", each, each * (len(runs) - number) / 60
            )
        records.append({"table": experiment.table, "row": experiment.row, **measured})
    return records


def _turn(run: tuple[Experiment, int]) -> tuple[int, ...]:
    """Methods come pair by pair, so that a study that is stopped has some to compare."""
    experiment, seed = run
    if experiment.table not in METHOD_TABLES:
        return (0,)
    return 1 + METHOD_TABLES.index(experiment.table), seed, experiment.split


def write_study(records: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pages and, in a folder beside them, the records that they are made of.

    Without all tables of a file of records, that file and its page stay as they are. Returns the
    pages that were written.

    Raises:
        ValueError: `folder` has learned masks alone, which make no page.
    """
    provenance = {
        "num_steps": get_config().num_steps,
        "versions": versions(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }
    written = write_records(records, provenance, folder / DATASET)
    pages = []
    if written & OF_METHODS:
        write_method_page(read_methods(folder / DATASET), folder)
        pages.append(folder / METHOD_PAGE_FILE)
    if written - OF_METHODS:
        curve = json.loads(_clip().with_suffix(".json").read_text())
        write_page(read_study(folder / DATASET), curve, folder)
        pages.append(folder / PAGE_FILE)
    return pages


def _run(
    experiment: Experiment, seed: int, folder: pathlib.Path, path: pathlib.Path
) -> dict[str, Any]:
    """Trains, evaluates, and keeps what was measured in `path`, which it returns."""
    config = experiment_config(experiment, seed, folder)
    started = time.monotonic()
    workdir = folder / "runs" / path.stem
    if experiment.first_phase is not None:
        modules = _first_phase(experiment, seed, folder, workdir.with_name(f"{path.stem}-first"))
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, modules=str(modules))
        )
    if experiment.table in METHOD_TABLES:
        _reuse_frozen(folder, workdir, experiment, seed)
    train_and_evaluate(config, workdir)
    steps = sorted(
        int(evaluated.name.partition("_")[2])
        for evaluated in (workdir / RESULTS_FOLDER).glob("step_*")
    )
    record = {
        "seed": seed,
        "split": experiment.split,
        "settings": dict(experiment.changes),
        "scores": [{"step": step, **_scores(experiment, workdir, step)} for step in steps],
        "seconds": round(time.monotonic() - started, 1),
    }
    if experiment.changes.get("model.pretrained") in CLIPS_OF_THE_STUDY:
        clip = pathlib.Path(_trained_weights(experiment, folder)["model.pretrained"])
        record["quiz"] = json.loads(clip.with_name(CURVE_FILE).read_text())["quiz"][-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_sealed_json(path, record)


def _reuse_frozen(
    folder: pathlib.Path, workdir: pathlib.Path, experiment: Experiment, seed: int
) -> None:
    """Copies what another method's run has of the frozen CLIP, which evaluation checks by its key.

    What is corrupt, or of another key, is evaluated again.
    """
    frozen = workdir / RESULTS_FOLDER / "step_0"
    for other in _experiments_of_methods():
        if (other.table, other.split) == (experiment.table, experiment.split):
            found = folder / "runs" / _name(other, seed, folder) / RESULTS_FOLDER / "step_0"
            if found.exists() and not frozen.exists():
                shutil.copytree(found, frozen)


def _first_phase(
    experiment: Experiment, seed: int, folder: pathlib.Path, workdir: pathlib.Path
) -> pathlib.Path:
    """The modules of the run before, which is not evaluated, and made unless it is there."""
    modules = workdir / MODULES
    if not modules.exists():
        first = dataclasses.replace(experiment, changes=experiment.first_phase, first_phase=None)
        config = experiment_config(first, seed, folder)
        train_and_evaluate(
            dataclasses.replace(config, evaluation=type(config.evaluation)()), workdir
        )
    return modules


def _experiments_of_methods() -> tuple[Experiment, ...]:
    return *METHOD_EXPERIMENTS, *SECOND_CLIP_EXPERIMENTS, *CONVNEXT_EXPERIMENTS


def _with_times(records: list[dict[str, Any]], folder: pathlib.Path) -> list[dict[str, Any]]:
    """With `relative_time`, that of a step, in the records of methods; all take turns for it."""
    times = {
        table: _times(experiments, folder)
        for table, experiments in (
            (METHODS_TABLE, METHOD_EXPERIMENTS),
            (CONVNEXT_TABLE, CONVNEXT_EXPERIMENTS),
        )
        if any(record["table"] == table for record in records)
    }
    return [
        record | {"relative_time": round(times[record["table"]][record["row"]], 2)}
        if record["table"] in times
        else record
        for record in records
    ]


def _times(experiments: Sequence[Experiment], folder: pathlib.Path) -> dict[str, float]:
    of_first = [one for one in experiments if one.split == experiments[0].split]
    names = "".join(_name(one, SEEDS[0], folder) for one in of_first)
    path = folder / "results" / f"step_seconds-{_digest(names.encode())}.json"
    seconds = read_sealed_json(path)
    if seconds is None:
        configs = {one.row: experiment_config(one, SEEDS[0], folder) for one in of_first}
        seconds = write_sealed_json(path, step_seconds(configs))
    return relative_times(seconds, REFERENCE)


def experiment_config(experiment: Experiment, seed: int, folder: pathlib.Path) -> Config:
    """configs/shapes_world.py with the experiment's changes.

    Worlds are drawn, and a generator or CLIP trained, below `folder` unless they are there.
    """
    data = folder / "worlds" / f"seed_{seed}"
    draw_world(data, seed)
    unseen = unseen_classes(experiment.split)
    changes = {
        "evaluation.num_pictures": 0,
        **experiment.changes,
    }
    changes |= _trained_weights(experiment, folder)
    if experiment.changes.get("evaluation.records") == MASKS_OF_THE_RECIPE:
        changes["evaluation.records"] = str(_masks_of_the_recipe(folder, seed))
        changes["evaluation.roots.shapes_world"] = ""
    if experiment.held_out_split is not None:
        development = folder / "worlds" / f"seed_{DEVELOPMENT_SEED + seed}"
        draw_world(development, DEVELOPMENT_SEED + seed)
        unseen += unseen_classes(experiment.held_out_split)
        changes["evaluation.roots.shapes_world"] = str(development)
    return world_config(data, folder / "cache", seed, unseen, changes)


def _masks_of_the_recipe(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A folder with the records that the recipe evaluates, which are made unless they are there."""
    records = folder / "evaluated_masks" / f"seed_{seed}"
    changes = {"data.split": "val", "data.records": str(records / DATASET)}
    data = folder / "worlds" / f"seed_{seed}"
    precompute(job_from_config(world_config(data, folder / "cache", seed, (), changes)))
    return records


def _scores(experiment: Experiment, workdir: pathlib.Path, step: int) -> dict[str, float]:
    """mIoU (gt_or_pred) of seen and unseen classes, or of seen and held-out ones."""
    result = read_result(workdir / RESULTS_FOLDER / f"step_{step}" / f"{DATASET}.json")
    if experiment.held_out_split is None:
        numbers = result.zero_shot
        scores = {"seen": numbers.seen_miou, "unseen": numbers.unseen_miou, "hiou": numbers.hiou}
        return scores | (_mask_scores(result) if experiment.table in METHOD_TABLES else {})
    return _held_out_scores(result, experiment)


def _mask_scores(result: EvaluationResult) -> dict[str, float]:
    masks = result.masks
    return {"seen_masks": masks.seen_mask_accuracy, "unseen_masks": masks.unseen_mask_accuracy}


def _held_out_scores(result: EvaluationResult, experiment: Experiment) -> dict[str, float]:
    unseen = _mask(experiment.split)
    held_out = _mask(experiment.held_out_split)
    seen, _ = mean_ious(result.metrics, ~unseen & ~held_out)
    of_held_out, _ = mean_ious(result.metrics, held_out)
    return {"seen": seen, "held_out": of_held_out, "hiou": harmonic_mean(seen, of_held_out)}


def _mask(split: int):
    ids = [CLASS_NAMES.index(name) for name in unseen_classes(split)]
    return unseen_mask(ids, len(CLASS_NAMES))


def _trained_weights(experiment: Experiment, folder: pathlib.Path) -> dict[str, str]:
    """Settings that are weights of the study's own, which it trains unless they are there."""
    weights = {}
    if experiment.changes.get("proposals.path") == OF_THE_SPLIT:
        weights["proposals.path"] = str(train_generator(folder, experiment.split))
    if (name := experiment.changes.get("model.pretrained")) in CLIPS_OF_THE_STUDY:
        weights["model.pretrained"] = str(_trained_clip(name, folder))
    return weights


def _trained_clip(name: str, folder: pathlib.Path) -> pathlib.Path:
    """What another configuration trained, or another architecture, stays beside it."""
    training = CLIPS_OF_THE_STUDY[name]
    settings = json.dumps(dataclasses.asdict(training), sort_keys=True)
    digest = _digest((settings + architecture(CLIPS[training.tower])).encode())
    workdir = folder / "clips" / f"{name.replace(' ', '_').lower()}-{digest}"
    if (workdir / WEIGHTS_FILE).exists():
        return workdir / WEIGHTS_FILE
    return train_clip(training, workdir)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _name(experiment: Experiment, seed: int, folder: pathlib.Path) -> str:
    """Of the files of a run; equal for rows of different tables that are the same run.

    It tells the content of weights that the study trained: others under the same configuration,
    such as of another machine, are another run.
    """
    settings = dataclasses.asdict(experiment) | {"recipe": get_config().to_dict()}
    for irrelevant in ("table", "row", "seeds"):
        del settings[irrelevant]
    if experiment.table in METHOD_TABLES:  # whose results have more numbers
        settings["table"] = experiment.table
    content = [json.dumps(settings, sort_keys=True).encode(), _clip().read_bytes()]
    for path in map(pathlib.Path, _trained_weights(experiment, folder).values()):
        content.append((path / WEIGHTS if path.is_dir() else path).read_bytes())
    return f"{_digest(b''.join(content))}-seed-{seed}"


def _clip() -> pathlib.Path:
    return BUILT_IN[get_config().model.pretrained]
