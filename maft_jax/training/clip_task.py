"""The task of tuning CLIP's image tower with masks."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.records.record_source import RecordSource
from maft_jax.config import Config
from maft_jax.convert.formats import ClipWeights, default_format, why_not, write_weights
from maft_jax.convert.method_modules import write_modules
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text_classifier import cached_class_embeddings, text_tower_identity
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.proposals.record_sets import synonyms
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state.checkpointing import TEXT_TOWER
from maft_jax.state.restored_run import MODULES, TUNED_WEIGHTS
from maft_jax.state.train_state import overlay
from maft_jax.state.tuned_tree import EXTRA, TunedTree
from maft_jax.training.masking_identity import masking_identity
from maft_jax.training.step_setup import StepSetup, make_step_setup, tuned_tree
from maft_jax.training.task import PeriodicEvaluation
from maft_jax.training.teacher import teacher_fields
from maft_jax.training.training_data import describe_synonyms
from maft_jax.weights import open_weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTask:
    """A Task: the student is an image tower, its teacher the same before the first step."""

    config: ResolvedConfig
    clip: ClipConfig
    towers: Mapping
    """The whole pretrained CLIP on the host."""
    mesh: Mesh
    weights_file: str = TUNED_WEIGHTS
    reads_positions: bool = False

    @functools.cached_property
    def tree(self) -> TunedTree:
        """How the parameters lie."""
        return tuned_tree(self.config)

    @functools.cached_property
    def parameters(self) -> Mapping:
        begun = self.tree.begin(self.clip.vision, self.towers["visual"])
        if not (path := self.config.model.modules):
            return begun
        return {**begun, EXTRA: self.tree.read_modules(self.clip.vision, path)}

    @functools.cached_property
    def setup(self) -> StepSetup:
        return make_step_setup(self.config, self.clip.vision, self.mesh)

    def num_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.towers))

    def per_example(self, source: RecordSource) -> dict[str, np.ndarray]:
        return teacher_fields(self.config, self.clip, self.towers, source, self.mesh)

    def context(self, source: RecordSource) -> np.ndarray:
        data = self.config.data
        return cached_class_embeddings(
            self.clip.text,
            self.towers["text"],
            source.class_names,
            data.templates,
            cache_dir(data),
            synonyms(data, source.description),
        )

    def make_evaluation(self) -> PeriodicEvaluation | None:
        if not self.config.evaluation.has_data_sets:
            return None
        from maft_jax.evaluators.during_training import (
            TrainingEvaluation,  # not needed for training alone
        )

        return TrainingEvaluation(self.config, self.clip, self.towers, self.mesh)

    def identity(self, source: RecordSource) -> dict[str, Any]:
        return {
            "pretrained": fingerprint(self.towers["visual"]),
            TEXT_TOWER: text_tower_identity(self.clip.text, self.towers["text"]),
            "architecture": repr(self.clip.vision),
            **masking_identity(self.config.masking, self.clip.vision.default_masking),
            "synonyms": describe_synonyms(self.config.data, source),
            "tree": self.tree.describe(),
        }

    def write(self, path: epath.Path, trainable: Mapping) -> str | None:
        tree = overlay(self.parameters, trainable)
        visual = jax.tree.map(np.asarray, self.tree.visual(tree))
        tuned = self.towers | {"visual": visual}
        if self.tree.has_modules:
            method = self.tree.method
            modules, file = self.tree.modules(tree), path.parent / MODULES
            write_modules(file, method.module_rules, modules, method.reader)
        name = default_format(path, self.clip)
        if reason := why_not(name, self.clip):
            return f"the format {name} {reason}"
        write_weights(ClipWeights.of(self.clip, tuned, self.config.masking), path, name)
        return None


def open_clip_task(config: Config, mesh: Mesh) -> ClipTask:
    """The task for the weights of config.model.pretrained.

    Raises:
        ValueError: they are missing or corrupt, or do not suit the configuration.
    """
    logger.info("reading %s", config.model.pretrained)
    weights = open_weights(config.model.pretrained, **config.model.stated, needs_text=True)
    if weights.modules is not None:
        raise ValueError(
            f"config.model.pretrained={config.model.pretrained}: its method trained modules beside "
            "the tower; begin with the run's tuned.safetensors and, if they are to be trained "
            "further, with its modules.safetensors as config.model.modules"
        )
    config = resolve(config, weights.config, weights.masking, mesh)
    return ClipTask(config, weights.config, weights.parameters(), mesh)
