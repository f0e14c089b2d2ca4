"""What a run needs before its first step: everything that can be checked is checked here.

Of several processes each reads weights and data by itself; if one cannot, none begins.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.records.record_source import RecordSource
from maft_jax.config import Config
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text_classifier import cached_class_embeddings, text_tower_identity
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.proposals.record_sets import synonyms
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.runtime import consensus, metric_logging, sharding
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.runtime.workdir import check_free_space, check_shared, make_writable
from maft_jax.state.checkpointing import TEXT_TOWER, Checkpoints
from maft_jax.state.train_state import TrainState
from maft_jax.training.masking_identity import masking_identity
from maft_jax.training.step_setup import StepSetup, make_step_setup
from maft_jax.training.teacher import teacher_fields
from maft_jax.training.training_data import describe_data, describe_synonyms, open_training_data
from maft_jax.weights import open_weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HostState:
    """What a process has on its host, before any collective."""

    config: ResolvedConfig
    mesh: Mesh
    clip: ClipConfig
    parameters: dict
    """The whole pretrained CLIP."""
    setup: StepSetup
    abstract_state: TrainState
    """Shapes and dtypes of the state."""
    source: RecordSource
    per_example: dict[str, np.ndarray]
    """Further fields of a Batch, one row for each example of the source."""
    evaluation: Any
    """A TrainingEvaluation, or None where there is no data set to evaluate."""
    host_text: np.ndarray
    """Class embeddings [c, e] or [c, names, e], as this process computed them."""


@dataclasses.dataclass(frozen=True)
class Run(HostState):
    """Everything that stays the same from the first step to the last."""

    workdir: epath.Path
    pretrained: dict
    """The pretrained image tower on the mesh: frozen, and the teacher."""
    text: jax.Array
    """The first process's class embeddings, on the mesh."""
    step: Callable
    checkpoints: Checkpoints
    run_identity: dict[str, Any]
    """What a checkpoint must agree with to be resumed from."""


def set_up_run(config: Config, workdir: epath.Path) -> tuple[Run, TrainState]:
    """Loads weights and data and places them on the devices; the state is that of step 0.

    Raises:
        ValueError: the configuration, weights, data or workdir cannot work.
    """
    with consensus.fail_together():
        loaded = _load(config, workdir)
    config, visual, mesh = loaded.config, loaded.parameters["visual"], loaded.mesh
    rules = loaded.clip.vision.sharding_rules
    frozen = loaded.setup.frozen(visual)
    run_identity = {
        "pretrained": fingerprint(visual),
        TEXT_TOWER: text_tower_identity(loaded.clip.text, loaded.parameters["text"]),
        "architecture": repr(loaded.clip.vision),
        **masking_identity(config.masking, loaded.clip.vision.default_masking),
        **describe_data(loaded.source),
        "synonyms": describe_synonyms(config.data, loaded.source),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "trainable": list(config.optimizer.trainable),
    }
    consensus.check_same(run_identity | {"config": dataclasses.asdict(config)})
    check_shared(workdir)
    on_host = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
    run = Run(
        **on_host,
        workdir=workdir,
        pretrained=sharding.place(frozen, mesh, rules),
        text=sharding.place_whole(consensus.broadcast_from_first(loaded.host_text), mesh),
        step=loaded.setup.jitted(loaded.abstract_state, frozen),
        checkpoints=Checkpoints(workdir, config.checkpointing),
        run_identity=run_identity,
    )
    return run, loaded.setup.place_state(visual)


def _load(config: Config, workdir: epath.Path) -> HostState:
    make_writable(epath.Path(cache_dir(config.data)), "config.data.cache_dir")
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    _warn_of_sums_in_bfloat16(config.model.compute_dtype, mesh)
    logger.info("reading %s", config.model.pretrained)
    weights = open_weights(config.model.pretrained, **config.model.stated, needs_text=True)
    clip, parameters = weights.config, weights.parameters()
    config = resolve(config, clip, weights.masking, mesh)
    visual = parameters["visual"]
    setup = make_step_setup(config, clip.vision, mesh)
    state = jax.eval_shape(setup.init_state, visual)
    num_kept = config.checkpointing.keep_newest + config.checkpointing.keep_best + 1
    check_free_space(workdir, num_kept * _num_bytes(state) + _num_bytes(parameters))
    logger.info(metric_logging.describe_parameters(state.trainable, visual))

    source = open_training_data(config)
    per_example = teacher_fields(config, clip, parameters, source, mesh)
    evaluation = _set_up_evaluation(config, clip, parameters, mesh)
    text = cached_class_embeddings(
        clip.text,
        parameters["text"],
        source.class_names,
        config.data.templates,
        cache_dir(config.data),
        synonyms(config.data, source.description),
    )
    return HostState(
        config, mesh, clip, parameters, setup, state, source, per_example, evaluation, text
    )


def _warn_of_sums_in_bfloat16(compute_dtype: str, mesh: Mesh) -> None:
    """What XLA's compiler for CPUs does to some gradients since jax 0.11."""
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    if (
        compute_dtype == "bfloat16"
        and mesh.devices.flat[0].platform == "cpu"
        and jax.__version_info__ >= (0, 11)
        and flag not in os.environ.get("XLA_FLAGS", "")
    ):
        logger.warning(
            "config.model.compute_dtype=bfloat16 on a CPU: XLA adds up some gradients in "
            "bfloat16, 2e-2 of their norm off; set XLA_FLAGS=%s, or use float32",
            flag,
        )


def _set_up_evaluation(config: ResolvedConfig, clip: ClipConfig, parameters: Mapping, mesh: Mesh):
    if not config.evaluation.has_data_sets:
        return None
    from maft_jax.evaluators.during_training import (
        TrainingEvaluation,  # not needed for training alone
    )

    return TrainingEvaluation(config, clip, parameters, mesh)


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
