"""The same shards as an Apache Beam pipeline, for those who outgrow one machine."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from input_pipeline.records.record_shards import atomic_write_bytes
from maft_jax.proposals.generator import BatchedGenerator
from maft_jax.proposals.precompute import describe_problems, prepare_folder, summarize
from maft_jax.proposals.precompute_shards import BadExamples, PrecomputeJob, Problem
from maft_jax.proposals.precompute_summary import Summary
from maft_jax.runtime.only_writer import only_writer

PROBLEMS_FILE = "problems.json"


def run(job: PrecomputeJob, pipeline_options: Sequence[str]) -> Summary:
    """As `precompute`, on the runner that Beam's `pipeline_options` name; waits for its end.

    This process and Beam's workers must see the data set and `job.folder` under the same paths.

    Raises:
        ValueError: as `precompute`; or Beam is not installed, or the generator needs no Beam.
    """
    if isinstance(job.generator, BatchedGenerator):
        raise ValueError(
            f"--engine=beam: generator={job.generator.name} runs in batches on the devices of a "
            "machine; leave --engine out, and for several machines give --process_count and "
            "--process_index"
        )
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--engine=beam: Apache Beam is not installed ({error}); pip install 'maft_jax[beam]'"
        ) from error
    with only_writer(job.folder, "records", wait=True, part=".0-of-1.unfinished"):
        return _run(beam, job, PipelineOptions(list(pipeline_options)))


def _run(beam: Any, job: PrecomputeJob, options: Any) -> Summary:
    problems_path = epath.Path(job.folder) / PROBLEMS_FILE
    missing = prepare_folder(job, range(job.num_shards))
    if missing:
        problems_path.unlink(missing_ok=True)
        with beam.Pipeline(options=options) as pipeline:
            (
                pipeline
                | "shards" >> beam.Create(missing)
                | "spread" >> beam.Reshuffle()
                | "write shard" >> beam.Map(_write_shard, job)
                | "gather" >> beam.combiners.ToList()
                | "write problems" >> beam.Map(_write_problems, str(problems_path))
            )
    if problems_path.exists():
        problems = [
            Problem(text, label_map, dict(labels))
            for text, label_map, labels in json.loads(problems_path.read_text())
        ]
        problems_path.unlink()
        raise ValueError(describe_problems(problems, job))
    return summarize(job)


def _write_shard(shard: int, job: PrecomputeJob) -> tuple[int, tuple[Problem, ...]]:
    """The shard and what is wrong with its examples, in which case it is not written."""
    try:
        job.write_shard(shard)
    except BadExamples as error:
        return shard, error.problems
    return shard, ()


def _write_problems(found: list[tuple[int, tuple[Problem, ...]]], path: str) -> None:
    problems = [
        (problem.text, problem.label_map, list(problem.unknown_labels.items()))
        for _, problems in sorted(found, key=lambda pair: pair[0])
        for problem in problems
    ]
    if problems:
        atomic_write_bytes(epath.Path(path), json.dumps(problems).encode())
