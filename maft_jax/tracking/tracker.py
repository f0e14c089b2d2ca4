"""A point of a run is written once to a tracking service, whatever stops the run or the service."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maft_jax.config import Config
from maft_jax.config.fields import field_names
from maft_jax.runtime.addresses import without_logins
from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.json_files import read_json
from maft_jax.runtime.metric_logging import ScalarWriter, read_metrics
from maft_jax.tracking.mlflow_run import MlflowRun
from maft_jax.tracking.tracked_run import OpenRun, TrackedRun
from maft_jax.tracking.wandb_run import WandbRun

SERVICES: dict[str, OpenRun] = {"wandb": WandbRun, "mlflow": MlflowRun}
"""By the name of their Python package, which is also that of our extra."""

TRACKING_FILE = "tracking.json"
_SECONDS_BETWEEN_TRIES = 600.0

logger = logging.getLogger(__name__)


def check_client(service: str) -> None:
    """Refuses a service whose client is not installed, before anything is compiled.

    Raises:
        ValueError: says what to install.
    """
    if service in SERVICES and importlib.util.find_spec(service) is None:
        raise ValueError(
            f"config.tracking={service}: expected its client; pip install 'maft_jax[{service}]', "
            "or leave the setting out"
        )


@contextlib.contextmanager
def tracked(config: Config, workdir: epath.Path, begin: bool) -> Iterator[list[ScalarWriter]]:
    """Context of a run; yields the writer of its points, in the first process alone.

    Args:
        begin: now, and not only once there is a point to write.
    """
    if config.tracking not in SERVICES or jax.process_index() != 0:
        yield []
        return
    settings = {name: operator.attrgetter(name)(config) for name in field_names(Config)}
    tracker = Tracker(config.tracking, SERVICES[config.tracking], workdir, settings)
    if begin:
        tracker.send()
    complete = False
    try:
        yield [tracker]
        complete = True
    finally:
        tracker.finish(complete)


@dataclasses.dataclass
class _Progress:
    """What tracking.json has: points that no kill can undo any more."""

    service: str
    run: str | None = None
    num_points: int = 0
    last_steps: dict[str, int] = dataclasses.field(default_factory=dict)
    """The last step that was written of training, and of evaluations."""


class Tracker(ScalarWriter):
    """Writes points to a service; one that fails is warned of once, tried again, and never raises.

    Points that wait, and those of metrics.jsonl that an earlier process could not write, go first.
    """

    def __init__(
        self,
        service: str,
        open_run: OpenRun,
        workdir: epath.Path,
        settings: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`settings` by dotted names; `clock` tells seconds."""
        self._service, self._open_run = service, open_run
        self._workdir, self._settings, self._clock = workdir, settings, clock
        self._progress = _read_progress(workdir / TRACKING_FILE, service)
        self._run: TrackedRun | None = None
        self._logged: list[tuple[float, str, int]] = []
        """When, of which kind, at which step: points that the service may not keep yet."""
        self._first_ones: set[str] = set()
        self._retry_at, self._warned = -np.inf, False
        self._waiting: list[tuple[int, dict[str, float]]] = []
        for record in read_metrics(workdir):
            self._add(record.pop("step"), record)

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        """Writes a point, less what is not finite; one that was written before is left out."""
        self._add(step, scalars)
        if self._waiting and self._clock() >= self._retry_at:
            self.send()

    def send(self) -> None:
        """Opens the run, if that is not done yet, and writes what waits."""
        try:
            self._run = self._run or self._open()
            while self._waiting:
                self._write(*self._waiting[0])
                del self._waiting[0]
        except Exception as error:
            self._retry_at = self._clock() + _SECONDS_BETWEEN_TRIES
            if not self._warned:
                logger.warning(
                    "config.tracking=%s: %s: %s; training goes on, metrics.jsonl has all points, "
                    "and those that are missing are written once the service takes them",
                    self._service,
                    type(error).__name__,
                    without_logins(error),
                )
            self._warned = True

    def finish(self, complete: bool) -> None:
        """Tries once more to write what waits, and ends this part of the run."""
        if self._waiting:
            self.send()
        if self._run is None:
            return
        try:
            self._run.finish(complete)
            self._note_kept(np.inf)
        except Exception as error:
            logger.warning("config.tracking=%s: %s", self._service, without_logins(error))

    def _add(self, step: int, scalars: Mapping[str, float | None]) -> None:
        if step > self._progress.last_steps.get(_kind(scalars), -1):
            finite = {name: float(x) for name, x in scalars.items() if x is not None}
            finite = {name: x for name, x in finite.items() if np.isfinite(x)}
            self._waiting.append((step, finite))

    def _open(self) -> TrackedRun:
        run = self._open_run(self._workdir, self._progress.run, self._settings)
        self._progress.run = run.id
        self._save()
        logger.info("config.tracking=%s: this is run %s there", self._service, run.id)
        return run

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        """A process that was killed may have written its last point without noting it."""
        kind = _kind(scalars)
        first = kind not in self._first_ones
        if not (first and any(self._run.has(step, name) for name in list(scalars)[:1])):
            self._run.log(self._progress.num_points + len(self._logged), step, scalars)
        self._first_ones.add(kind)
        self._logged.append((self._clock(), kind, step))
        self._note_kept(self._clock() - self._run.seconds_to_keep)

    def _note_kept(self, until: float) -> None:
        """Notes the points that were written by then."""
        kept = [(kind, step) for seconds, kind, step in self._logged if seconds <= until]
        if kept:
            del self._logged[: len(kept)]
            self._progress.num_points += len(kept)
            self._progress.last_steps |= dict(kept)
            self._save()

    def _save(self) -> None:
        content = json.dumps(dataclasses.asdict(self._progress), indent=2) + "\n"
        atomic_write_bytes(self._workdir / TRACKING_FILE, content.encode())


def _kind(scalars: Mapping) -> str:
    """Points of training and of evaluations come at the same steps, but not at the same time."""
    return "training" if "seconds_per_step" in scalars else "evaluation"


def _read_progress(path: epath.Path, service: str) -> _Progress:
    if not path.exists():
        return _Progress(service)
    try:
        progress = _Progress(**read_json(path))
        counts = [progress.num_points, *dict(progress.last_steps).values()]
        if not all(type(count) is int for count in counts):
            raise ValueError(f"expected whole numbers, got {counts!r:.80}")
        if progress.service != service:
            return _Progress(service)
        return progress
    except (ValueError, TypeError) as error:
        logger.warning("%s: %s; another run begins at %s", path, error, service)
        return _Progress(service)
