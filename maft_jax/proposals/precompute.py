"""Computes the records of a data set on this machine, going on where a former run stopped."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from etils import epath
from tqdm import tqdm

from input_pipeline.records.label_counts import count_labels, write_label_counts
from input_pipeline.records.record_shards import (
    DATASET_FILE,
    done_path,
    read_dataset_file,
    read_done,
    write_dataset_file,
)
from maft_jax.proposals.device_examples import DeviceExamples
from maft_jax.proposals.generator import BatchedGenerator
from maft_jax.proposals.precompute_shards import (
    BadExamples,
    ComputedExample,
    PrecomputeJob,
    Problem,
)
from maft_jax.proposals.precompute_summary import Statistics, Summary, write_summary
from maft_jax.proposals.record_sets import SYNONYMS
from maft_jax.proposals.worker_processes import run_tasks
from maft_jax.runtime.only_writer import only_writer

_MAX_LISTED = 10
_STEM = re.compile(r"(train|val)-\d{5,}-of-\d{5,}")
_SECONDS_BETWEEN_LOG_LINES = 30.0
_IMAGES_WORTH_A_PROCESS = 16
"""Superpixels of so many photos take as long as a process needs to start."""

logger = logging.getLogger(__name__)


def precompute(
    job: PrecomputeJob,
    num_workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Summary:
    """Writes the shards that are missing, and sums up those that are there.

    Of `process_count` processes, on as many machines that share the folder, each writes every
    process_count-th shard, spread over `num_workers` processes of its machine: unless given one per
    CPU, but no more than there are images worth starting one for. Of a BatchedGenerator they are
    threads, which read for the devices of this process. Finished shards stay as they are, but for
    examples whose signature changed. Whatever the numbers, and however often it was killed before,
    the files are the same in the end. While another process writes the same shards, this one waits,
    and then finds them there.

    Raises:
        ValueError: the folder holds other records, or there are examples that cannot be used, which
            are all listed; their shards are missing then, and all others are kept.
        ChildProcessError: a worker process was killed.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index: expected 0 .. {process_count - 1} of {process_count} processes, got "
            f"{process_index}"
        )
    shards = range(process_index, job.num_shards, process_count)
    part = f".{process_index}-of-{process_count}.unfinished"  # as all that a kill may leave there
    with only_writer(job.folder, "records", wait=True, part=part):
        missing = prepare_folder(job, shards)
        try:
            problems = _write_shards(job, missing, num_workers)
        finally:
            _remove_unfinished(job.folder, [job.stem(shard) for shard in missing])
        if problems:
            raise ValueError(describe_problems(problems, job))
        return summarize(job)


def prepare_folder(job: PrecomputeJob, shards: Sequence[int]) -> list[int]:
    """Writes dataset.json, and returns which of the shards are not finished.

    Shards of another recipe or of changed examples no longer count as finished afterwards, so
    that a run that is killed cannot leave a mixture which looks complete.

    Raises:
        ValueError: the folder holds records of another recipe, and `job.replace` is not set.
    """
    folder = epath.Path(job.folder)
    former = read_dataset_file(folder) if (folder / DATASET_FILE).exists() else {}
    before, now = _flat(former), _flat(job.description)
    changes = {
        name: (before.get(name), now.get(name))
        for name in (*now, SYNONYMS)
        if before.get(name) != now.get(name)
    }
    if former and changes and not job.replace:
        raise ValueError(_describe_changes(folder, changes))
    if changes:
        _remove_other_records(job)
    missing = [shard for shard in shards if not job.is_finished(shard)]
    for shard in missing:
        done_path(folder, job.stem(shard)).unlink(missing_ok=True)
    if changes:
        write_dataset_file(folder, job.description)
    if missing and len(missing) < len(shards):
        logger.info(
            "%s: %d of %d shards are finished already",
            folder,
            len(shards) - len(missing),
            len(shards),
        )
    return missing


def summarize(job: PrecomputeJob) -> Summary:
    """Sums up the finished shards; once that is all of them, writes summaries and label counts."""
    statistics, num_bytes, num_shards, stored = Statistics(), 0, 0, []
    for shard in range(job.num_shards):
        done = read_done(job.folder, job.stem(shard))
        if done is not None:
            stored.append(done["extra"]["statistics"])
            statistics.merge(Statistics.from_json(stored[-1]))
            num_bytes += done["num_bytes"]
            num_shards += 1
    names = tuple(job.source.class_names)
    summary = Summary(names, num_shards, job.num_shards, num_bytes, statistics)
    if num_shards == job.num_shards:
        write_summary(job.folder, summary)
        counts = count_labels(names, statistics.class_images, stored)
        write_label_counts(job.folder, counts)
    return summary


def describe_problems(problems: Sequence[Problem], job: PrecomputeJob) -> str:
    """One message for all examples that cannot be used."""
    more = len(problems) - _MAX_LISTED
    return "\n  ".join(
        [
            f"{len(problems)} of {len(job.source)} examples cannot be used; repair or remove them "
            "and give the same command again, which computes only what changed:",
            *(problem.text for problem in problems[:_MAX_LISTED]),
            *([f"and {more} more"] if more > 0 else []),
            *_count_unknown_labels(problems),
        ]
    )


def _count_unknown_labels(problems: Sequence[Problem]) -> list[str]:
    """A line for each label value without a class, the most frequent first."""
    pixels, label_maps = Counter(), defaultdict(list)
    for problem in problems:
        pixels.update(problem.unknown_labels)
        for value in problem.unknown_labels:
            label_maps[value].append(problem.label_map)
    lines = [
        f"{value} has no class: {count:,} pixels of {len(label_maps[value]):,} label maps, the "
        f"first of them {label_maps[value][0]}"
        for value, count in pixels.most_common()
    ]
    more = len(lines) - _MAX_LISTED
    return lines[:_MAX_LISTED] + ([f"and {more} more label values"] if more > 0 else [])


def _write_shards(
    job: PrecomputeJob, missing: Sequence[int], num_workers: int | None
) -> list[Problem]:
    """Returns what is wrong with examples, in their order."""
    total = sum(len(job.examples_of(shard)) for shard in missing)
    seconds_between = 0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LOG_LINES
    problems: dict[int, tuple[Problem, ...]] = {}
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(
            tqdm(
                total=total,
                desc=f"{job.generator.name} proposals",
                unit="image",
                mininterval=seconds_between,
                disable=not missing,
            )
        )

        def show(num_done: int) -> None:
            progress.update(num_done - progress.n)

        if isinstance(job.generator, BatchedGenerator):
            examples = DeviceExamples(job, missing, num_workers or _num_cpus())
            compute, num_processes = opened.enter_context(examples).compute, 1
        else:
            num_processes = num_workers or min(_num_cpus(), total // _IMAGES_WORTH_A_PROCESS)
            compute = None
        work = functools.partial(_problems_of_shard, job, compute)
        results = opened.enter_context(
            contextlib.closing(run_tasks(work, missing, num_processes, show))
        )
        problems.update(results)
    return [problem for shard in sorted(problems) for problem in problems[shard]]


def _problems_of_shard(
    job: PrecomputeJob,
    compute: Callable[[int], ComputedExample] | None,
    shard: int,
    on_example: Callable[[], None],
) -> tuple[Problem, ...]:
    """Writes the shard, or returns what is wrong with its examples."""
    try:
        job.write_shard(shard, on_example, compute)
    except BadExamples as error:
        return error.problems
    return ()


def _remove_other_records(job: PrecomputeJob) -> None:
    """Removes shards that are not part of this job, and the done-files of outdated ones."""
    stems = {job.stem(shard): shard for shard in range(job.num_shards)}
    for path in epath.Path(job.folder).glob("*-of-*"):
        stem, _, kind = path.name.partition(".")
        if not _STEM.fullmatch(stem):
            continue
        if stem not in stems or (kind == "done.json" and not job.is_finished(stems[stem])):
            path.unlink(missing_ok=True)


def _remove_unfinished(folder: str, stems: Sequence[str]) -> None:
    """Removes what killed runs left, once this run's workers are gone."""
    for path in epath.Path(folder).glob("*.unfinished"):
        if path.name.partition(".")[0] in {*stems, "dataset", "summary", "label_counts"}:
            path.unlink(missing_ok=True)


def _describe_changes(folder: epath.Path, changes: dict[str, tuple]) -> str:
    listed = [
        f"{name}: {_short(there)} there, {_short(now)} now"
        for name, (there, now) in changes.items()
    ]
    return "\n  ".join(
        [
            f"{folder}: the folder holds records of another recipe; choose another "
            "--config.data.records, or replace them with --overwrite. They differ in",
            *listed,
        ]
    )


def _short(value: object) -> str:
    """Names of many classes by their number and a digest, which tells equal from different."""
    if isinstance(value, list | dict) and len(value) > _MAX_LISTED:
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
        return f"{len(value)} names (digest {digest})"
    return repr(value)


def _flat(description: dict) -> dict:
    recipe = description.get("recipe", {})
    flat = {name: value for name, value in description.items() if name != "recipe"}
    return flat | {f"recipe.{name}": value for name, value in recipe.items()}


def _num_cpus() -> int:
    """Those that this process may use, which in containers are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
