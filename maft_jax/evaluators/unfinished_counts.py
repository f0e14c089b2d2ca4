"""What an evaluation has counted so far: kept on disk, so that an interrupted one continues."""

import hashlib
import io
import json
import logging
import time
from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from etils import epath

from maft_jax.evaluators.evaluation_counts import EvaluationCounts
from maft_jax.runtime import consensus
from maft_jax.runtime.metric_logging import format_seconds
from maft_jax.runtime.sealed_files import read_sealed, write_sealed

SECONDS_BETWEEN_SAVES = 30.0
SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


@runtime_checkable
class Counts(Protocol):
    """Of some number of classes; made anew, or `from_state`."""

    def state(self) -> dict[str, np.ndarray]:
        """Arrays, to be saved with numpy."""
        ...


C = TypeVar("C", bound=Counts)


def key_of(parts: Mapping) -> str:
    """Digest of JSON values; equal keys mean equal counts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def state_bytes(counts: Counts, **more) -> bytes:
    """The state of counts, and what else is said with it, as numpy saves it."""
    file = io.BytesIO()
    np.savez(file, **more, **counts.state())
    return file.getvalue()


def from_first(num_batches: int, counts: C, num_classes: int) -> tuple[int, C]:
    """What the first process has, on all, so that they go on alike whether or not they share a
    disk.
    """
    if jax.process_count() == 1:
        return num_batches, counts
    own = state_bytes(counts, num_batches=num_batches) if jax.process_index() == 0 else b""
    with np.load(io.BytesIO(consensus.gather_bytes(own)[0]), allow_pickle=False) as state:
        return int(state["num_batches"]), type(counts).from_state(state, num_classes)


class UnfinishedCounts:
    """The file with the counts of a data set until it is finished."""

    def __init__(
        self, folder: epath.Path, dataset: str, key: str, num_classes: int, kind=EvaluationCounts
    ):
        """`kind` is the class of the counts."""
        self._kind = kind
        self._path = folder / f"{dataset}.unfinished.npz"
        self._key = key
        self._num_classes = num_classes
        self._saved = time.monotonic()

    def load(self) -> tuple[int, Counts]:
        """Number of batches that are counted, and their counts; none if the file is of others."""
        nothing = 0, self._kind(self._num_classes)
        content = read_sealed(self._path)
        if content is None:
            return nothing
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            if str(stored["key"]) != self._key:
                logger.info("%s is of another evaluation; starting anew", self._path)
                return nothing
            counts = self._kind.from_state(stored, self._num_classes)
            return int(stored["num_batches"]), counts

    def save(self, num_batches: int, counts: Counts) -> None:
        """Replaces the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = state_bytes(counts, key=self._key, num_batches=num_batches)
        write_sealed(self._path, content)
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last time is long enough ago."""
        return time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES

    def save_now_and_then(self, num_batches: int, counts: Counts) -> None:
        """Saves if it is due."""
        if self.is_due:
            self.save(num_batches, counts)

    def remove(self) -> None:
        """Once the result is written."""
        self._path.unlink(missing_ok=True)


class ProgressLines:
    """Says every ten seconds, and at the end, how far a data set is.

    The first batch, for which programs are compiled, does not count, unless it is the only one.
    """

    def __init__(self, dataset: str, num_images: int, num_done: int):
        self._dataset = dataset
        self._num_images = num_images
        self._from = num_done
        self._began = self._said = time.monotonic()
        self._is_first = True

    def show(self, num_done: int) -> None:
        """Number of images that are counted, those of an earlier start included."""
        now, last = time.monotonic(), num_done >= self._num_images
        if self._is_first and not last:
            self._from, self._is_first = num_done, False
            self._began = self._said = now
            return
        if not last and now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        speed = (num_done - self._from) / max(now - self._began, 1e-6)
        logger.info(
            "%s %d/%d images | %.3g images/s | ETA %s",
            self._dataset,
            num_done,
            self._num_images,
            speed,
            format_seconds((self._num_images - num_done) / speed),
        )
