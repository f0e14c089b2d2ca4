"""Proposals computed once for every example of a source, and kept in a cache folder."""

import hashlib
import multiprocessing
import os
import signal
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from input_pipeline.examples import IGNORE, Example, ExampleSource, PreparedExample, PreparedSource
from maft_jax.proposals.ground_truth import ground_truth_proposals
from maft_jax.proposals.superpixels import superpixel_proposals

Proposals = UInt8[np.ndarray, "n grid_h grid_w"]

GENERATORS: dict[str, Callable[[Example, int], Proposals]] = {
    "superpixels": lambda example, n: superpixel_proposals(example.image, n),
    "ground_truth": lambda example, n: ground_truth_proposals(example.label_map, n),
}

CACHE_VERSION = 1
"""Part of every cache key: raise it when a generator or the file format changes."""

_MAX_LISTED = 10
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class _Summary:
    """What a cache file tells without reading its masks."""

    num_proposals: int
    num_classes: int
    content: str


@dataclass(frozen=True)
class _ProposalCache:
    """The cache files of one source, generator and number of proposals."""

    source: ExampleSource
    generator: str
    num_proposals: int
    folder: Path

    def path(self, index: int) -> Path:
        key = (
            CACHE_VERSION,
            self.generator,
            self.num_proposals,
            self.source.example_ids[index],
            self.source.signature(index),
        )
        return self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npz"

    def read_summary(self, index: int) -> _Summary | None:
        """None where there is no readable file."""
        try:
            with open(self.path(index), "rb") as file, np.load(file) as stored:
                counts = stored["counts"]
                return _Summary(int(counts[0]), int(counts[1]), str(stored["content"]))
        except _UNREADABLE:
            return None

    def read_proposals(self, index: int, example: Example) -> Proposals:
        """Stored proposals; those of a file damaged since it was checked are computed again."""
        try:
            with open(self.path(index), "rb") as file, np.load(file) as stored:
                return stored["proposals"]
        except _UNREADABLE:
            return self.compute(index, example)

    def compute(self, index: int, example: Example) -> Proposals:
        """Proposals of an example, which are also stored."""
        proposals = GENERATORS[self.generator](example, self.num_proposals)
        num_classes = len(np.setdiff1d(example.label_map, [IGNORE]))
        content = hashlib.sha256(repr((example.image.shape, example.label_map.shape)).encode())
        content.update(np.ascontiguousarray(example.image))
        content.update(np.ascontiguousarray(example.label_map))
        path = self.path(index)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        with open(unfinished, "wb") as file:
            np.savez_compressed(
                file,
                proposals=proposals,
                counts=np.array([len(proposals), num_classes]),
                content=np.array(content.hexdigest()),
            )
        os.replace(unfinished, path)
        return proposals


class CachedProposals:
    """The PreparedSource that `prepare` returns: examples of the source, proposals of the cache."""

    def __init__(self, cache: _ProposalCache, summaries: list[_Summary]):
        source = cache.source
        self._cache = cache
        self.class_names = source.class_names
        self.example_ids = source.example_ids
        self.num_proposals = max(1, *(summary.num_proposals for summary in summaries))
        self.max_classes_per_image = max(summary.num_classes for summary in summaries)
        fingerprint = hashlib.sha256(
            repr((CACHE_VERSION, cache.generator, cache.num_proposals, source.class_names)).encode()
        )
        for example_id, summary in zip(source.example_ids, summaries, strict=True):
            fingerprint.update(repr((example_id, summary.content)).encode())
        self.fingerprint = fingerprint.hexdigest()

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: int) -> PreparedExample:
        example = self._cache.source[index]
        proposals = self._cache.read_proposals(index, example)
        return PreparedExample(example.example_id, example.image, example.label_map, proposals)


def prepare(
    source: ExampleSource,
    generator: str,
    num_proposals: int,
    cache_dir: str | Path,
    num_workers: int | None = None,
) -> PreparedSource:
    """Computes and stores the proposals that `cache_dir` lacks, and checks every new example.

    `generator` is a key of GENERATORS; at most `num_proposals` are kept per image. Work is spread
    over `num_workers` processes, one per CPU unless given. An interrupted run continues where it
    stopped; examples whose signature changed are computed again. Raises one ValueError for all
    examples that cannot be read.
    """
    if generator not in GENERATORS:
        raise ValueError(f"generator: expected one of {', '.join(GENERATORS)}, got {generator!r}")
    if num_proposals < 1:
        raise ValueError(f"num_proposals: expected 1 or more, got {num_proposals}")
    if len(source) == 0:
        raise ValueError("source: expected at least one example, got none")
    folder = Path(cache_dir) / f"{generator}_{num_proposals}"
    folder.mkdir(parents=True, exist_ok=True)
    cache = _ProposalCache(source, generator, num_proposals, folder)

    summaries = [cache.read_summary(index) for index in range(len(source))]
    missing = [index for index, summary in enumerate(summaries) if summary is None]
    num_workers = min(num_workers or os.cpu_count() or 1, len(missing))
    run = _store_in_processes if num_workers > 1 else _store_in_this_process
    problems: dict[int, str] = {}
    with tqdm(total=len(missing), desc=f"{generator} proposals", disable=not missing) as progress:
        for index, problem in run(cache, missing, num_workers):
            progress.update()
            if problem is not None:
                problems[index] = problem
    if problems:
        raise ValueError(_describe_problems(problems, len(source)))
    for index in missing:
        summaries[index] = cache.read_summary(index)
    return CachedProposals(cache, summaries)


def _describe_problems(problems: dict[int, str], num_examples: int) -> str:
    listed = [problems[index] for index in sorted(problems)[:_MAX_LISTED]]
    return "\n  ".join(
        [
            f"{len(problems)} of {num_examples} examples cannot be used; the rest is cached, so "
            "that a rerun only reads what changed:",
            *listed,
            *(["..."] if len(problems) > _MAX_LISTED else []),
        ]
    )


def _store_proposals(cache: _ProposalCache, index: int) -> str | None:
    """Computes one cache file; returns what is wrong with the example, if anything is."""
    try:
        cache.compute(index, cache.source[index])
    except ValueError as error:
        return str(error)
    return None


def _store_in_this_process(
    cache: _ProposalCache, missing: list[int], _num_workers: int
) -> Iterator[tuple[int, str | None]]:
    for index in missing:
        yield index, _store_proposals(cache, index)


def _store_in_processes(
    cache: _ProposalCache, missing: list[int], num_workers: int
) -> Iterator[tuple[int, str | None]]:
    # Not fork: the parent may already run the threads of JAX and TensorFlow.
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _start_worker, (cache,)
    )
    try:
        with _one_thread_per_process():
            index_of = {pool.submit(_store_in_worker, index): index for index in missing}
        for future in as_completed(index_of):
            yield index_of[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process that computes proposals died; if it ran out of memory, lower "
            "num_workers. A script that calls prepare needs `if __name__ == '__main__':`. What is "
            "done is cached, and a rerun continues"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker_cache: _ProposalCache | None = None


def _start_worker(cache: _ProposalCache) -> None:
    global _worker_cache
    _worker_cache = cache
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _store_in_worker(index: int) -> str | None:
    return _store_proposals(_worker_cache, index)


@contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Processes started inside compute on one thread each: more would fight over the CPUs."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
