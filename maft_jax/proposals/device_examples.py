"""Examples whose generator runs on devices: threads read, devices compute, threads pack."""

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from input_pipeline.examples import Example
from maft_jax.proposals.generator import BatchedGenerator, Proposals
from maft_jax.proposals.precompute_shards import ComputedExample, PrecomputeJob

_PATIENCE = 8
"""For how many times its own number of items an incomplete list waits for more."""
_RUN_AHEAD = 2
"""Batches that devices compute while results of former ones come back."""
_READ_AHEAD = 2
"""Examples that every thread reads before they are asked for."""

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class _Read:
    """An example as the network reads it."""

    index: int
    shard: int
    example: Example
    image: UInt8[np.ndarray, "input_h input_w 3"]
    padded_size: tuple[int, int]


class DeviceExamples(AbstractContextManager):
    """`PrecomputeJob.compute` for the examples of some shards, which are asked for in order.

    What goes through a device together is a group: images of one shard and one padded size, by the
    order of the shard alone. A batch has a group for every device, from whatever shards. So records
    depend neither on the number of devices nor on which shards were finished before.
    """

    def __init__(self, job: PrecomputeJob, shards: Sequence[int], num_threads: int):
        self._job = job
        self._generator: BatchedGenerator = job.generator
        self._threads = ThreadPoolExecutor(num_threads, "examples")
        self._num_read_ahead = _READ_AHEAD * num_threads
        self._done: dict[int, Future] = {}
        self._batches = self._run(shards)

    def __exit__(self, *_) -> None:
        self._batches.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def compute(self, index: int) -> ComputedExample:
        """Raises ValueError where the example cannot be used."""
        while index not in self._done and next(self._batches, self) is not self:
            pass
        return self._done.pop(index).result()

    def _run(self, shards: Sequence[int]) -> Iterator[None]:
        """Each step brings the results of a batch nearer; at the end all examples are done."""
        generator = self._generator
        groups = gather(
            self._reads(shards),
            lambda read: (read.shard, read.padded_size),
            generator.images_per_device,
        )
        batches = gather(groups, lambda group: group[0].padded_size, generator.num_devices)
        started = ((batch, self._start(batch)) for batch in batches)
        running = deque(itertools.islice(started, _RUN_AHEAD))
        while running:
            batch, fetch = running.popleft()
            running.extend(itertools.islice(started, 1))
            for read, made in zip(self._rows(batch), fetch(), strict=True):
                if read.index not in self._done:  # rows that fill up come again
                    self._done[read.index] = self._threads.submit(self._pack, read, made)
            yield

    def _reads(self, shards: Sequence[int]) -> Iterator[_Read]:
        """Those that could be read, in order; the errors of others are done."""
        ahead: deque[tuple[int, Future]] = deque()
        places = ((shard, index) for shard in shards for index in self._job.examples_of(shard))
        submitted = (
            (index, self._threads.submit(self._read, shard, index)) for shard, index in places
        )
        ahead.extend(itertools.islice(submitted, self._num_read_ahead))
        while ahead:
            index, future = ahead.popleft()
            ahead.extend(itertools.islice(submitted, 1))
            if future.exception() is None:
                yield future.result()
            else:
                self._done[index] = future

    def _read(self, shard: int, index: int) -> _Read:
        example = self._job.source[index]
        image = self._generator.prepare(example.image)
        return _Read(index, shard, example, image, self._generator.padded_size(image.shape[:2]))

    def _start(self, batch: list[list[_Read]]) -> Callable[[], list[Proposals]]:
        images = [read.image for read in self._rows(batch)]
        return self._generator.start(images, self._job.num_proposals)

    def _rows(self, batch: list[list[_Read]]) -> Iterator[_Read]:
        """As many for every batch: what lacks in a group is its first image, a group the first."""
        generator = self._generator
        for group in itertools.islice(_filled(batch), generator.num_devices):
            yield from itertools.islice(_filled(group), generator.images_per_device)

    def _pack(self, read: _Read, made: Proposals) -> ComputedExample:
        return self._job.computed(read.index, read.example, made)


def gather(
    items: Iterable[Item], key: Callable[[Item], Hashable], count: int
) -> Iterator[list[Item]]:
    """Lists of `count` items of the same key, in order.

    A list that is still incomplete after _PATIENCE * count further items comes as it is, so that
    rare keys hold up nothing; and so do all at the end.
    """
    waiting: dict[Hashable, tuple[int, list[Item]]] = {}  # the oldest first
    for number, item in enumerate(items):
        _, gathered = waiting.setdefault(key(item), (number, []))
        gathered.append(item)
        if len(gathered) == count:
            del waiting[key(item)]
            yield gathered
        while waiting:
            oldest, (since, incomplete) = next(iter(waiting.items()))
            if number - since < _PATIENCE * count:
                break
            del waiting[oldest]
            yield incomplete
    for _, incomplete in waiting.values():
        yield incomplete


def _filled(items: list[Item]) -> Iterator[Item]:
    return itertools.chain(items, itertools.repeat(items[0]))
