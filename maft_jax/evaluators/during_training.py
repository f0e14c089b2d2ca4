"""Evaluation while training: frozen before the first step, then the student, against each other."""

import logging
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8

from maft_jax.evaluators.data_sets import EvaluationSet
from maft_jax.evaluators.evaluation import Evaluation
from maft_jax.evaluators.results import EvaluationResult
from maft_jax.evaluators.tables import format_table
from maft_jax.models.clip import ClipConfig
from maft_jax.models.mask_reader import Tower, describe_tower, with_modules
from maft_jax.pictures.sheets import comparison_sheet
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import consensus
from maft_jax.runtime.atomic_files import clear_leftovers, save_picture
from maft_jax.runtime.metric_logging import MetricWriter, read_metrics
from maft_jax.runtime.stop_signals import StopSignals
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state.train_state import TrainState, overlay
from maft_jax.state.tuned_tree import TunedTree

RESULTS_FOLDER = "evaluation"
PREFIX = "evaluation"
"""Of the names of evaluations' metrics."""

logger = logging.getLogger(__name__)


class TrainingEvaluation:
    """Compares the student with the CLIP that it began as, whenever it is asked to."""

    def __init__(self, config: ResolvedConfig, clip: ClipConfig, parameters: Mapping, mesh: Mesh):
        """`parameters` are those of the whole pretrained CLIP, on the host.

        Raises:
            ValueError: the data sets of config.evaluation cannot be evaluated.
        """
        self._config = config
        self._evaluation = Evaluation(config, clip, parameters["text"], mesh)
        self._host_visual = parameters["visual"]
        self._tree = TunedTree.of(config, config.optimizer.trainable)
        self._begun = self._tree.begin(clip.vision, self._host_visual)
        self._frozen: list[EvaluationResult] = []
        self._frozen_maps: dict[str, list[np.ndarray]] = {}

    def is_due(self, step: int) -> bool:
        return is_due(self._config, step)

    def evaluate(
        self,
        workdir: epath.Path,
        state: TrainState,
        pretrained: Mapping,
        writer: MetricWriter,
        signals: StopSignals,
    ) -> None:
        """Evaluates the student, and before its first step the frozen CLIP; logs a table.

        What is there already is not computed again.

        Args:
            pretrained: the tree that the run began with, on the mesh, as the step reads it.

        Raises:
            EvaluationInterrupted: a signal came; what was counted is kept.
        """
        step = int(state.step)
        if jax.process_index() == 0:
            clear_leftovers(workdir / RESULTS_FOLDER)
        encoder, begun = self._evaluation.encoder, pretrained
        pretrained = encoder.in_compute_dtype(self._tree.visual(begun))
        if not self._frozen:
            self._frozen = self._results(workdir, 0, pretrained, self._host_visual, signals)
        results, student = self._frozen, pretrained
        if step > 0:
            visual, modules = self._tree.student(encoder, begun, state.trainable)
            student = with_modules(visual, self._tree.read_with(modules))
            tree = overlay(self._begun, consensus.to_host(state.trainable))
            of_tree = self._tree.read_with(self._tree.modules(tree))
            on_host = with_modules(self._tree.visual(tree), of_tree)
            results = self._results(workdir, step, student, on_host, signals)
        if step == 0:
            logger.info("the frozen CLIP, before the first step:\n%s", format_table(results))
        else:
            logger.info("step %d:\n%s", step, format_table(results, baseline=self._frozen))
        if consensus.broadcast_from_first(is_written(workdir, step)):
            return
        scalars = {
            f"{PREFIX}/{result.dataset}/{name}": value
            for result in results
            for name, value in result.scalars().items()
        }
        self._draw(workdir, step, pretrained, student, writer)
        writer.write_scalars(step, scalars)
        writer.flush()

    def _results(
        self, workdir: epath.Path, step: int, tower: Tower, on_host: Tower, signals
    ) -> list[EvaluationResult]:
        origin = {
            "checkpoint": str(workdir),
            "step": step,
            "frozen": step == 0,
            "pretrained": self._config.model.pretrained,
            **describe_tower(on_host),
            "tuned_from": None if step == 0 else fingerprint(self._host_visual),
        }
        folder = workdir / RESULTS_FOLDER / f"step_{step}"
        return self._evaluation.evaluate(tower, origin, folder, signals)

    def _draw(
        self,
        workdir: epath.Path,
        step: int,
        pretrained: Mapping,
        student: Tower,
        writer: MetricWriter,
    ) -> None:
        num_pictures = self._config.evaluation.num_pictures
        for data in self._evaluation.data_sets if num_pictures else ():
            maps = self._evaluation.label_maps
            if data.name not in self._frozen_maps:
                self._frozen_maps[data.name] = maps(data, pretrained, num_pictures)
            frozen = self._frozen_maps[data.name]
            tuned = frozen if step == 0 else maps(data, student, num_pictures)
            if jax.process_index() == 0:
                sheet = _comparison(data, frozen, tuned)
                save_picture(workdir / RESULTS_FOLDER / f"{data.name}.png", sheet)
                writer.write_images(step, {f"{PREFIX}/{data.name}": sheet[None]})


def _comparison(data: EvaluationSet, frozen, tuned) -> UInt8[np.ndarray, "h w 3"]:
    examples = [data.source[i] for i in range(len(frozen))]
    return comparison_sheet(
        [example.image for example in examples],
        [example.label_map for example in examples],
        frozen,
        tuned,
        data.source.class_names,
        [example.example_id for example in examples],
    )


def is_due(config: ResolvedConfig, step: int) -> bool:
    """Whether there is an evaluation after this many steps, before the last."""
    every = config.evaluation.every_steps
    return every > 0 and step > 0 and step % every == 0 and step < config.num_steps


def is_written(workdir: epath.Path, step: int) -> bool:
    """Whether metrics.jsonl has this step's numbers, which a resumed run keeps."""
    return any(
        record["step"] == step and any(name.startswith(f"{PREFIX}/") for name in record)
        for record in read_metrics(workdir)
    )
