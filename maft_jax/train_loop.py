"""The file to read first: what a training run does, from its configuration to its last checkpoint.

Chapters: check and load everything that can fail, build the step, resume, train.
"""

import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.device_batches import to_global_batches
from input_pipeline.examples import PreparedSource
from input_pipeline.folder_source import FolderSource
from input_pipeline.train_pipeline import TrainGeometry, example_ids_at, make_train_batches
from maft_jax import metric_logging, optimizer, sharding, train_state, train_step
from maft_jax.array_types import Batch
from maft_jax.checkpointing import Checkpoints
from maft_jax.config import Config, DataConfig
from maft_jax.convert.pretrained import fingerprint, load_pretrained
from maft_jax.metric_window import MetricWindow, NonFiniteLoss
from maft_jax.models.ip_clip import IPClip
from maft_jax.proposals.prepared_source import prepare
from maft_jax.stop_signals import StopSignals, TrainingInterrupted
from maft_jax.text_embeddings import cached_class_embeddings
from maft_jax.train_state import TrainState
from maft_jax.workdir import check_free_space, prepare_workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first step to the last."""

    config: Config
    workdir: epath.Path
    mesh: Mesh
    source: PreparedSource
    pretrained: dict
    """The image tower, on the mesh; frozen, and the teacher."""
    text: jax.Array
    """Class embeddings [c, e]."""
    step: Callable
    checkpoints: Checkpoints
    belongs_to: dict[str, Any]
    """What a checkpoint must agree with to be resumed from."""


def train_and_evaluate(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Trains to `config.num_steps`, resuming from `workdir` if it holds checkpoints.

    Raises:
        ValueError: the configuration, weights, data or workdir cannot work; before any step.
        TrainingInterrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteLossError: training diverged; says where, and what is left.
        CheckpointError: a checkpoint could not be written.
    """
    run, state = _set_up(config, epath.Path(workdir))
    try:
        restored = run.checkpoints.restore_latest(_abstract(state), run.belongs_to)
        if restored is not None:
            state = restored
            logger.info("resuming from the checkpoint of step %d", int(state.step))
        metric_logging.forget_metrics_after(run.workdir, int(state.step))
        with StopSignals() as signals:
            return _train(run, state, signals)
    finally:
        run.checkpoints.close()


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message has the step, the examples and the last good checkpoint."""


def _set_up(config: Config, workdir: epath.Path) -> tuple[Run, TrainState]:
    prepare_workdir(workdir, config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    logger.info("reading %s", config.model.pretrained)
    clip, parameters = load_pretrained(config.model.pretrained)
    encoder = IPClip(
        clip.vision,
        dtype=compute_dtype(config.model.compute_dtype),
        remat=config.model.remat,
        mask_start_layer=config.model.mask_start_layer,
    )
    spec = train_step.StepSpec(
        encoder,
        config.loss,
        (config.model.image_size, config.model.image_size),
        config.optimizer.accumulation_steps,
    )
    clip.vision.grid(*spec.image_size)

    tx = optimizer.make_optimizer(config.optimizer, config.num_steps)
    state = train_state.init_train_state(parameters["visual"], config.optimizer.trainable, tx)
    check_free_space(workdir, state, config.checkpoint.keep_newest + config.checkpoint.keep_best)
    logger.info(metric_logging.describe_parameters(state.trainable, parameters["visual"]))

    source = _prepare_data(config.data)
    text = cached_class_embeddings(
        clip.text,
        parameters["text"],
        source.class_names,
        config.data.templates,
        cache_dir(config.data),
    )
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        pretrained=_place(parameters["visual"], mesh),
        text=jax.device_put(text, sharding.replicated(mesh)),
        step=train_step.make_train_step(spec, tx, mesh, state, parameters["visual"]),
        checkpoints=Checkpoints(workdir, config.checkpoint),
        belongs_to={
            "pretrained": fingerprint(parameters["visual"]),
            "data": source.fingerprint,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "trainable": list(config.optimizer.trainable),
        },
    )
    return run, _place(state, mesh)


def _prepare_data(config: DataConfig) -> PreparedSource:
    folder = FolderSource(
        config.root, config.images, config.annotations, config.classes, config.ignore_labels
    )
    logger.info("%d images, %d classes in %s", len(folder), len(folder.class_names), config.root)
    return prepare(folder, config.proposals, config.num_proposals, cache_dir(config) / "proposals")


def _train(run: Run, state: TrainState, signals: StopSignals) -> TrainState:
    config, first = run.config, int(state.step)
    if first >= config.num_steps:
        logger.info("nothing to do: %d of %d steps are done", first, config.num_steps)
        return state
    batches = _batches(run, first)
    batch = next(batches)
    step = _compile(run, state, batch)
    writer = metric_logging.make_writer(run.workdir, config.num_steps)
    window = MetricWindow()
    for done in range(first + 1, config.num_steps + 1):
        state, metrics = step(state, run.pretrained, run.text, batch)
        window.add(done, metrics)
        last = done == config.num_steps or signals.received is not None
        if last or done % config.log_every_steps == 0:
            _fetch(run, window)
            _write_metrics(run, writer, window, done)
        if last or done % config.checkpoint.every_steps == 0:
            _fetch(run, window)
            run.checkpoints.save(state, run.belongs_to, window.take_loss())
            writer.flush()
        if last:
            break
        batch = next(batches)
    run.checkpoints.wait()
    writer.close()
    if done < config.num_steps:
        raise TrainingInterrupted(signals.received, done)
    logger.info("done: %d steps; checkpoints in %s", done, run.workdir / "checkpoints")
    return state


def _batches(run: Run, first_step: int) -> Iterator[Batch]:
    data = run.config.data
    host_batches = make_train_batches(
        run.source,
        global_batch_size=run.config.batch_size,
        seed=run.config.seed,
        start_step=first_step,
        geometry=TrainGeometry(data.crop_size, data.short_sides, data.max_long_side, data.augment),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for arrays in to_global_batches(host_batches, sharding.batch_sharding(run.mesh)):
        yield Batch(**arrays)


def _compile(run: Run, state: TrainState, batch: Batch) -> Callable:
    """Compiles ahead of the first step, to say how long it took and what memory it needs."""
    logger.info("compiling the train step for %d devices", run.mesh.size)
    started = time.monotonic()
    compiled = run.step.lower(state, run.pretrained, run.text, batch).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    logger.info("compiled in %.0f s; %.0f MiB per device", time.monotonic() - started, used / 2**20)
    return compiled


def _fetch(run: Run, window: MetricWindow) -> None:
    try:
        window.fetch()
    except NonFiniteLoss as error:
        step_index = error.step - 1
        ids = example_ids_at(run.source, step_index, run.config.batch_size, run.config.seed)
        blamed = [name for name, fine in zip(ids, error.example_finite, strict=True) if not fine]
        good = run.checkpoints.newest_step()
        raise NonFiniteLossError(
            f"the loss or gradient of step {error.step} is not finite; examples: "
            f"{', '.join(blamed or ids)}{'' if blamed else ' (each finite by itself)'}; "
            f"last good checkpoint: {'none' if good is None else f'step {good}'} in {run.workdir}. "
            "Lower config.optimizer.learning_rate, or use config.model.compute_dtype=float32"
        ) from error


def _write_metrics(run: Run, writer, window: MetricWindow, step: int) -> None:
    schedule = optimizer.make_schedule(run.config.optimizer, run.config.num_steps)
    means = window.take_means(run.config.batch_size)
    writer.write_scalars(step, means | {"learning_rate": float(schedule(step - 1))})


def compute_dtype(name: str):
    """The dtype of matrix products; auto is bfloat16 wherever there is an accelerator."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def cache_dir(config: DataConfig) -> pathlib.Path:
    """Where proposals and text embeddings are kept between runs."""
    if config.cache_dir:
        return pathlib.Path(config.cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "maft_jax"


def _place(tree: Mapping | TrainState, mesh: Mesh):
    return jax.device_put(tree, sharding.tree_shardings(tree, mesh))


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=x.sharding), state
    )
