"""What a run needs before its first step: everything that can be checked is checked here.

Of several processes each reads weights and data by itself; if one cannot, none begins.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.records.record_source import RecordSource
from maft_jax.config import Config
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import consensus, metric_logging, sharding
from maft_jax.runtime.workdir import check_free_space, check_shared, make_writable
from maft_jax.state.checkpointing import Checkpoints
from maft_jax.state.named_weights import pin_weights, read_named_weights
from maft_jax.state.train_state import TrainState
from maft_jax.tracking.tracker import check_client
from maft_jax.training.clip_task import open_clip_task
from maft_jax.training.generator_task import open_generator_task
from maft_jax.training.task import PeriodicEvaluation, Task
from maft_jax.training.training_data import describe_data, open_training_data

TASKS: dict[str, Callable[[Config, Mesh], Task]] = {
    "train": open_clip_task,
    "train_generator": open_generator_task,
}
"""What trains, by config.task; raises ValueError where weights do not suit the configuration."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HostState:
    """What a process has on its host, before any collective."""

    mesh: Mesh
    task: Task
    abstract_state: TrainState
    """Shapes and dtypes of the state."""
    source: RecordSource
    per_example: dict[str, np.ndarray]
    """Further fields of a Batch, one row for each example of the source."""
    evaluation: PeriodicEvaluation | None
    host_context: Any
    """What the objective reads beside parameters and batch, as this process computed it."""
    named_weights: dict[str, Any]
    """What names of the hub in the settings stand for; see named_weights.pin_weights."""

    @property
    def config(self) -> ResolvedConfig:
        return self.task.config


@dataclasses.dataclass(frozen=True)
class Run(HostState):
    """Everything that stays the same from the first step to the last."""

    workdir: epath.Path
    pretrained: dict
    """Of the task's parameters what the step reads, on the mesh: frozen; of CLIP the teacher."""
    context: Any
    """The first process's, on the mesh."""
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
    task, config, mesh = loaded.task, loaded.config, loaded.mesh
    frozen = task.setup.frozen(task.parameters)
    run_identity = {
        **task.identity(loaded.source),
        **describe_data(loaded.source),
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
        pretrained=sharding.place(frozen, mesh, task.setup.objective.sharding_rules),
        context=jax.tree.map(
            lambda array: sharding.place_whole(consensus.broadcast_from_first(array), mesh),
            loaded.host_context,
        ),
        step=task.setup.jitted(loaded.abstract_state, frozen),
        checkpoints=Checkpoints(workdir, config.checkpointing),
        run_identity=run_identity,
    )
    return run, task.setup.place_state(task.parameters)


def _load(config: Config, workdir: epath.Path) -> HostState:
    if jax.process_index() == 0:
        check_client(config.tracking)
    make_writable(epath.Path(cache_dir(config.data)), "config.data.cache_dir")
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    _warn_of_sums_in_bfloat16(config.model.compute_dtype, mesh)
    config, named = pin_weights(config, read_named_weights(workdir))
    task = TASKS[config.task](config, mesh)
    state = jax.eval_shape(task.setup.init_state, task.parameters)
    kept = task.config.checkpointing
    num_kept = kept.keep_newest + kept.keep_best + 1
    check_free_space(workdir, num_kept * _num_bytes(state) + task.num_bytes())
    logger.info(metric_logging.describe_parameters(state.trainable, task.parameters))
    source = open_training_data(task.config)
    per_example, evaluation = task.per_example(source), task.make_evaluation()
    context = task.context(source)
    return HostState(mesh, task, state, source, per_example, evaluation, context, named)


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


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
