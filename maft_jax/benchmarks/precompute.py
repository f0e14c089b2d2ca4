"""The configured proposal generator: by itself, and as the job that writes records."""

import dataclasses
import os
import pathlib
import tempfile
import time

from input_pipeline.benchmark_records import write_benchmark_folder
from input_pipeline.example_range import FirstExamples
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.timing import Timings, seconds_of
from maft_jax.config import Config
from maft_jax.config.sections import DataConfig
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from maft_jax.proposals.precompute_shards import PrecomputeJob


def measure_precompute(
    config: Config, options: BenchmarkOptions, num_workers: int | None = None
) -> dict:
    """Proposals of options.steps images, one after the other and by a job of all cores.

    The records go to a folder that is removed afterwards.

    Raises:
        ValueError: the generator cannot work, or the configured data cannot be read.
    """
    workers = num_workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        job, described = _job(config, options, pathlib.Path(folder))
        blocked = _time_generator(job, options)
        started = time.perf_counter()
        precompute(job, workers)
        seconds = time.perf_counter() - started
    num_images = len(job.source)
    return {
        "data": described,
        "generator": job.generator.name,
        "num_proposals": job.num_proposals,
        "blocked": blocked.summary(num_images=1),
        "job": {
            "images": num_images,
            "workers": workers,
            "seconds": seconds,
            "images_per_second": num_images / seconds,
        },
    }


def _job(
    config: Config, options: BenchmarkOptions, folder: pathlib.Path
) -> tuple[PrecomputeJob, str]:
    if not options.configured_data:
        write_benchmark_folder(str(folder / "data"), options.steps)
        data = DataConfig(root=str(folder / "data"), cache_dir=str(folder / "cache"))
        config = dataclasses.replace(config, data=data)
        described = "photographs of 640x480"
    else:
        described = f"{config.data.dataset} {config.data.split} in {config.data.root}"
    job = job_from_config(config)
    count = min(options.steps, len(job.source))
    source = FirstExamples(job.source, count)
    return dataclasses.replace(job, source=source, folder=str(folder / "records")), described


def _time_generator(job: PrecomputeJob, options: BenchmarkOptions) -> Timings:
    """In this process, without reading and writing."""

    def propose(index: int) -> float:
        example = job.source[index % len(job.source)]
        return seconds_of(lambda: job.generator(example, job.num_proposals))

    for index in range(options.warmup):
        propose(index)
    return Timings(tuple(propose(index) for index in range(options.steps)))
