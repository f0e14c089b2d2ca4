"""The file to read first: what a training run does, from its first step to its last checkpoint."""

import contextlib
import logging
import os
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from input_pipeline.device_batches import GlobalBatches
from input_pipeline.process_batches import choose_num_processes
from input_pipeline.train_pipeline import example_ids_at, read_train_batches
from input_pipeline.write_errors import full_disk_behind
from maft_jax.config import Config
from maft_jax.models.array_types import Batch
from maft_jax.runtime import consensus, metric_logging, sharding, stop_requests
from maft_jax.runtime.atomic_files import save_picture
from maft_jax.runtime.metric_logging import MetricWriter
from maft_jax.runtime.only_writer import only_writer
from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals, TrainingInterrupted
from maft_jax.runtime.workdir import describe_run, make_writable
from maft_jax.state import optimizer
from maft_jax.state.checkpointing import CheckpointError
from maft_jax.state.train_state import TrainState
from maft_jax.tracking.tracker import tracked
from maft_jax.training import tuned_weights
from maft_jax.training.metric_window import MetricWindow, NonFiniteLoss
from maft_jax.training.profiling import StepProfile
from maft_jax.training.run_setup import Run, set_up_run
from maft_jax.training.training_data import draw_training_data, train_geometry

logger = logging.getLogger(__name__)

DATA_PICTURE = "training_data.png"


def train_and_evaluate(
    config: Config, workdir: str | os.PathLike, wait: bool = False
) -> TrainState:
    """Trains to `config.num_steps`, resuming from `workdir` if it holds checkpoints.

    Every process of the run calls this, and they do the same at the same time, but for reading
    data; files other than checkpoints are the first one's. Where another run writes to `workdir`,
    this one is refused, or with `wait` waits for its end.

    Raises:
        ValueError: the configuration, weights, data or workdir cannot work; before any step.
        TrainingInterrupted: SIGINT or SIGTERM came; the state is saved.
        TrainingDiverged: training diverged; says where, and what is left.
        CheckpointError: a checkpoint, or another file, could not be written.
        FolderInUse: another run writes to `workdir`.
    """
    workdir = epath.Path(workdir) if "://" in str(workdir) else epath.Path(os.path.abspath(workdir))
    with contextlib.ExitStack() as held:
        with consensus.fail_together():
            make_writable(workdir, "--workdir")
            if jax.process_index() == 0:
                held.enter_context(only_writer(workdir, "--workdir", wait=wait))
        return _train_and_evaluate(config, workdir)  # orbax refuses relative paths


def _train_and_evaluate(config: Config, workdir: epath.Path) -> TrainState:
    run, state = set_up_run(config, workdir)
    try:
        restored = run.checkpoints.restore_latest(_abstract(state), run.run_identity)
        if restored is not None:
            state = restored
            logger.info("resuming from the checkpoint of step %d", int(state.step))
        with consensus.fail_together():
            if jax.process_index() == 0:
                describe_run(run.workdir, run.config, run.named_weights)
                metric_logging.truncate_metrics(run.workdir, int(state.step))
        done = int(state.step) == config.num_steps
        with tracked(run.config, workdir, begin=not done) as more:
            if not done:
                with StopSignals() as signals:
                    state = _train(run, state, signals, more)
            if done and tuned_weights.are_written(run):
                logger.info("nothing to do: all %d steps are done", config.num_steps)
            else:
                tuned_weights.export(run, state)
            _evaluate_last(run, state, more)
        return state
    except Exception as error:
        first = full_disk_behind(error)
        if first is None or isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{first}\n{run.checkpoints.what_is_kept()}") from error
    finally:
        run.checkpoints.close()


class TrainingDiverged(RuntimeError):
    """Training diverged; the message has the step, the examples and the last good checkpoint."""

    exit_code = 1
    raised_everywhere = True


def _train(
    run: Run, state: TrainState, signals: StopSignals, more: list[MetricWriter]
) -> TrainState:
    first = int(state.step)
    batches = _batches(run, first)
    batch = Batch(**next(batches))
    step = _compile(run, state, batch)
    writer = metric_logging.make_writer(run.workdir, run.config.num_steps, more)
    try:
        if first == 0 and jax.process_index() == 0:
            _draw_data(run, writer)
        if run.evaluation is not None and (first == 0 or run.evaluation.is_due(first)):
            _evaluate(run, state, writer, signals)
        with stop_requests.saving():
            state, done = _take_steps(run, step, state, batch, batches, writer, signals)
    finally:
        batches.close()
        writer.close()
    if done < run.config.num_steps:
        raise TrainingInterrupted(signals.agreed(), done)
    logger.info("done: %d steps; checkpoints in %s", done, run.workdir / "checkpoints")
    return state


def _take_steps(
    run: Run,
    step: Callable,
    state: TrainState,
    batch: Batch,
    batches: GlobalBatches,
    writer: MetricWriter,
    signals: StopSignals,
) -> tuple[TrainState, int]:
    """Steps until the last one or a signal, whose state is saved; returns it and its number."""
    config = run.config
    window = MetricWindow()
    with StepProfile(run.workdir, config.profile_at_step) as profile:
        for done in range(int(state.step) + 1, config.num_steps + 1):
            with profile.before(done):
                state, metrics = step(state, run.pretrained, run.context, batch)
            window.add(done, metrics)
            last = done == config.num_steps or signals.agreed() is not None
            profile.after(done, last, metrics)
            if last or done % config.log_every_steps == 0:
                _fetch(run, window, writer)
                _write_metrics(run, writer, window, done)
            evaluated = run.evaluation is not None and run.evaluation.is_due(done)
            if last or evaluated or done % config.checkpointing.every_steps == 0:
                _fetch(run, window, writer)
                run.checkpoints.save(state, run.run_identity, window.take_loss())
                writer.flush()
            if last:
                break
            if evaluated:
                started = time.monotonic()
                _evaluate(run, state, writer, signals)
                window.exclude_seconds(time.monotonic() - started)
            batch = Batch(**batches.next_during(metrics["loss"]))
            window.seconds_waited = batches.seconds_waited
    run.checkpoints.wait()
    return state, done


def _batches(run: Run, first_step: int) -> GlobalBatches:
    share, num_shares = sharding.share_of_process(
        run.mesh, jax.process_index(), run.config.batch_size
    )
    batches = read_train_batches(
        run.source,
        num_processes=choose_num_processes(run.config.data.reading_processes),
        global_batch_size=run.config.batch_size,
        seed=run.config.seed,
        start_step=first_step,
        geometry=train_geometry(run.config.data),
        process_index=share,
        process_count=num_shares,
        per_example=run.per_example,
        with_positions=run.task.reads_positions,
    )
    return GlobalBatches(batches, sharding.batch_sharding(run.mesh))


def _compile(run: Run, state: TrainState, batch: Batch) -> Callable:
    """Compiles ahead of the first step, to say how long it took and what memory it needs."""
    logger.info("compiling the train step for %d devices", run.mesh.size)
    started = time.monotonic()
    compiled = run.step.lower(state, run.pretrained, run.context, batch).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    logger.info("compiled in %.0f s; %.0f MiB per device", time.monotonic() - started, used / 2**20)
    return compiled


def _fetch(run: Run, window: MetricWindow, writer: MetricWriter) -> None:
    try:
        window.fetch()
    except NonFiniteLoss as error:
        if not window.is_empty:
            _write_metrics(run, writer, window, error.step - 1)
        step_index = error.step - 1
        ids = example_ids_at(run.source, step_index, run.config.batch_size, run.config.seed)
        ids = [ids[i] for i in sharding.positions_of_rows(run.mesh, run.config.batch_size)]
        blamed = [name for name, fine in zip(ids, error.example_finite, strict=True) if not fine]
        good = run.checkpoints.newest_step()
        raise TrainingDiverged(
            f"the loss or gradient of step {error.step} is not finite; examples: "
            f"{', '.join(blamed or ids)}{'' if blamed else ' (each finite by itself)'}; "
            f"last good checkpoint: {'none' if good is None else f'step {good}'} in {run.workdir}. "
            "Lower config.optimizer.learning_rate, or use config.model.compute_dtype=float32"
        ) from error


def _write_metrics(run: Run, writer: MetricWriter, window: MetricWindow, step: int) -> None:
    schedule = optimizer.make_schedule(run.config.optimizer, run.config.num_steps)
    means = window.take_means(run.config.batch_size)
    writer.write_scalars(step, means | {"learning_rate": float(schedule(step - 1))})


def _draw_data(run: Run, writer: MetricWriter) -> None:
    """What the trainer sees, for people to check that their data is what they think it is."""
    picture = draw_training_data(run.source, run.config)
    save_picture(run.workdir / DATA_PICTURE, picture)
    writer.write_images(0, {"training_data": picture[None]})
    logger.info("see %s: images, labels and proposals as trained on", run.workdir / DATA_PICTURE)


def _evaluate(run: Run, state: TrainState, writer: MetricWriter, signals: StopSignals) -> None:
    """The state is saved already: a signal in a long evaluation loses nothing of either."""
    try:
        run.evaluation.evaluate(run.workdir, state, run.pretrained, writer, signals)
    except EvaluationInterrupted as error:
        run.checkpoints.wait()
        logger.warning("%s", error)
        raise TrainingInterrupted(error.signal_number, int(state.step)) from error


def _evaluate_last(run: Run, state: TrainState, more: list[MetricWriter]) -> None:
    if run.evaluation is None:
        return
    writer = metric_logging.make_writer(run.workdir, run.config.num_steps, more)
    with contextlib.closing(writer), StopSignals() as signals:
        _evaluate(run, state, writer, signals)


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=x.sharding), state
    )
