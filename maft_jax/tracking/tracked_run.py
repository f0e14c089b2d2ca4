"""What a tracking service does for a run, whichever it is."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from etils import epath


@runtime_checkable
class TrackedRun(Protocol):
    """A run at a service, which takes points; any method may raise what its client raises."""

    id: str
    seconds_to_keep: float
    """After which a point that was written survives the end of this process, however it comes."""

    def has(self, step: int, name: str) -> bool:
        """Whether a metric has a point at this step, where `log` would write it twice."""

    def log(self, index: int, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a point of several metrics.

        Args:
            index: how many points the run has before this one.
            step: of training.
        """

    def finish(self, complete: bool) -> None:
        """Ends this part of the run; `complete` is that nothing follows."""


OpenRun = Callable[[epath.Path, str | None, Mapping[str, Any]], TrackedRun]
"""From the workdir, the id of the run that is resumed, and the settings by dotted names."""
