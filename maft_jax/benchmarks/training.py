"""Steps fed by the input pipeline, as training runs them without its checkpoints and logs."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from input_pipeline.benchmark_records import write_benchmark_records
from input_pipeline.device_batches import GlobalBatches
from input_pipeline.process_batches import choose_num_processes
from input_pipeline.records.record_source import RecordSource
from input_pipeline.train_pipeline import read_train_batches
from maft_jax.benchmarks.drawn_data import draw_text
from maft_jax.benchmarks.models import BenchmarkModel
from maft_jax.benchmarks.step import StepData, StepProgram
from maft_jax.models.array_types import Batch
from maft_jax.runtime import sharding
from maft_jax.training.training_data import train_geometry

_NUM_PHOTOS = 256


def measure_training(
    model: BenchmarkModel, num_steps: int, longest: float, num_photos: int = _NUM_PHOTOS
) -> dict:
    """`num_steps` steps on batches that are read, decoded, augmented and sent to the devices.

    Args:
        longest: seconds after which no further step begins.
        num_photos: of 640x480, each with the configured number of proposals, read again and again.

    Raises:
        ValueError: settings cannot work.
    """
    config = model.config
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, model.mesh)
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark_records(folder, num_photos, config.proposals.num_proposals)
        source = RecordSource(folder)
        with _batches(model, source) as batches:
            text = draw_text(len(source.class_names), model.clip.vision.embed_dim)
            program = StepProgram(model, StepData(Batch(**next(batches)), text, ""))
            program.run()
            seconds, waited = _take_steps(program, batches, num_steps, longest)
    steps = len(seconds)
    total = sum(seconds)
    return {
        "data": f"{num_photos} photographs of 640x480 as records",
        "batch_size": config.batch_size,
        "steps": steps,
        "steps_asked_for": num_steps,
        "seconds": total,
        "p50_seconds": float(np.percentile(seconds, 50)),
        "p95_seconds": float(np.percentile(seconds, 95)),
        "images_per_second": steps * config.batch_size / total,
        "share_waited_for_input": waited / total,
        "cores": len(os.sched_getaffinity(0)),
    }


def _take_steps(
    program: StepProgram, batches: GlobalBatches, num_steps: int, longest: float
) -> tuple[list[float], float]:
    """Seconds from the end of each step to the end of the next, and seconds without a batch."""
    seconds: list[float] = []
    started = ended = time.perf_counter()
    batches.seconds_waited = 0.0
    running = None
    for _ in range(num_steps):
        if seconds and time.perf_counter() - started > longest:
            break
        batch = Batch(**batches.next_during(running))
        last, running = running, program.dispatch(batch)["loss"]
        if last is not None:  # one step runs while the batch of the next is on its way
            jax.block_until_ready(last)
            ended, before = time.perf_counter(), ended
            seconds.append(ended - before)
    jax.block_until_ready(running)
    seconds.append(time.perf_counter() - ended)
    return seconds, batches.seconds_waited


@contextlib.contextmanager
def _batches(model: BenchmarkModel, source: RecordSource) -> Iterator[GlobalBatches]:
    host_batches = read_train_batches(
        source,
        num_processes=choose_num_processes(model.config.data.reading_processes),
        global_batch_size=model.config.batch_size,
        seed=model.config.seed,
        start_step=0,
        geometry=train_geometry(model.config.data),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = GlobalBatches(host_batches, sharding.batch_sharding(model.mesh))
    try:
        yield batches
    finally:
        batches.close()
