"""The training input pipeline by itself: images per second, and cores that a step needs."""

import os
import tempfile

import jax

from input_pipeline.benchmark import measure
from input_pipeline.benchmark_records import write_benchmark_records
from input_pipeline.process_batches import choose_num_processes
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.config import Config
from maft_jax.proposals.precompute_job import records_folder
from maft_jax.runtime import stop_requests
from maft_jax.training.training_data import open_training_data, train_geometry

_NUM_PHOTOS = 32


def measure_input(config: Config, options: BenchmarkOptions) -> dict:
    """The numbers of `input_pipeline.benchmark.measure` with the configured geometry and batch.

    Raises:
        ValueError: the configured data cannot be read.
        Stopped: a signal came.
    """
    with tempfile.TemporaryDirectory() as folder:
        described = f"{_NUM_PHOTOS} photographs of 640x480"
        if options.configured_data:
            open_training_data(config)
            folder = os.fspath(records_folder(config))
            described = folder
        else:
            num_proposals = config.proposals.num_proposals
            write_benchmark_records(folder, _NUM_PHOTOS, num_proposals, stop_requests.check)
        numbers = measure(
            folder,
            config.batch_size // jax.process_count(),
            options.steps,
            len(os.sched_getaffinity(0)),
            train_geometry(config.data),
            stop_requests.check,
            choose_num_processes(config.data.reading_processes),
        )
    return {"data": described, **numbers}


def cores_for(step: dict, pipeline: dict) -> float:
    """Of every host, busy with nothing but reading for the measured step."""
    images_per_second = step["pipelined"]["images_per_second"] / jax.process_count()
    return images_per_second / pipeline["images_per_second_per_core"]
