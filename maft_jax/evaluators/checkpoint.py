"""What task=evaluate does: one set of weights on all data sets of config.evaluation."""

import contextlib
import logging
import os
from dataclasses import dataclass

import jax
from etils import epath

from maft_jax.config import Config
from maft_jax.evaluators.data_sets import check_roots
from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.results import EvaluationResult, read_result
from maft_jax.evaluators.segment_evaluation import SegmentEvaluation
from maft_jax.evaluators.segment_results import SegmentResult, segment_table
from maft_jax.evaluators.tables import format_table
from maft_jax.evaluators.true_labels import check_objects
from maft_jax.evaluators.weights import read_evaluated_weights
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.runtime import consensus, sharding
from maft_jax.runtime.only_writer import only_writer
from maft_jax.runtime.sharding import make_mesh
from maft_jax.runtime.stop_signals import StopSignals
from maft_jax.runtime.workdir import describe_run, make_writable
from maft_jax.state.named_weights import pin_weights

RESULTS_FOLDER = "evaluation"
FROZEN_FOLDER = "frozen"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationReport:
    """The results of one command, and those of the other kind of weights in the same workdir."""

    results: list[EvaluationResult] | list[SegmentResult]
    """Of segments or objects where config.evaluation.task says so."""
    frozen: bool
    others: list[EvaluationResult]
    """Of the tuned weights if these are frozen, of the frozen ones if these are tuned."""

    def table(self) -> str:
        """For people: frozen, tuned and gain where both are there."""
        if isinstance(self.results[0], SegmentResult):
            return segment_table(self.results)
        if not self.others:
            return format_table(self.results)
        tuned, frozen = self.results, self.others
        if self.frozen:
            tuned, frozen = frozen, tuned
        return format_table(tuned, baseline=frozen)


def evaluate_checkpoint(
    config: Config, workdir: str | os.PathLike, wait: bool = False
) -> EvaluationReport:
    """Evaluates all data sets, going on where an earlier call with the same workdir stopped.

    Results are in `workdir`/evaluation, those of frozen weights in the folder frozen in it. Where
    another command writes to the same one, this is refused, or with `wait` waits for its end.

    Raises:
        ValueError: the configuration, weights or data cannot work.
        EvaluationInterrupted: SIGINT or SIGTERM came; what was counted is kept.
        FolderInUse: another command evaluates into the same folder.
    """
    with contextlib.ExitStack() as held:
        return _evaluate(config, workdir, wait, held)


def _evaluate(
    config: Config, workdir: str | os.PathLike, wait: bool, held: contextlib.ExitStack
) -> EvaluationReport:
    base = epath.Path(workdir) / RESULTS_FOLDER
    with consensus.fail_together():
        check_roots(config)
        if config.evaluation.task != "semantic":
            check_objects(config)
        make_writable(base, "--workdir")
        make_writable(epath.Path(cache_dir(config.data)), "config.data.cache_dir")
        mesh = make_mesh(config.mesh)
        config, named = pin_weights(config, {})
        weights = read_evaluated_weights(config, mesh)
        frozen = weights.origin["frozen"]
        folder = base / FROZEN_FOLDER if frozen else base
        evaluation = Evaluation(weights.config, weights.clip, weights.parameters["text"], mesh)
        evaluator = evaluation
        if config.evaluation.task != "semantic":
            evaluator = SegmentEvaluation(evaluation, weights.config)
        if jax.process_index() == 0:
            make_writable(folder, "--workdir")
            held.enter_context(only_writer(folder, "--workdir", wait=wait))
            describe_run(folder, weights.config, named)
    tower = sharding.place(weights.tower, mesh, weights.clip.vision.sharding_rules)
    with StopSignals() as signals:
        results = evaluator.evaluate(tower, weights.origin, folder, signals)
    logger.info("results: %s", folder)
    if evaluator is not evaluation:
        return EvaluationReport(results, frozen, [])
    names = [result.dataset for result in results]
    others = _read_others(base if frozen else base / FROZEN_FOLDER, names)
    return EvaluationReport(results, frozen, others)


def _read_others(folder: epath.Path, names: list[str]) -> list[EvaluationResult]:
    found = []
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            try:
                found.append(read_result(path))
            except ValueError as error:
                logger.warning("%s; it is not compared with", error)
    return found
