"""What a run trains, as the loop over steps sees it; config.task names one."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from input_pipeline.records.record_source import RecordSource
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime.metric_logging import MetricWriter
from maft_jax.runtime.stop_signals import StopSignals
from maft_jax.state.train_state import TrainState
from maft_jax.training.step_setup import StepSetup


@runtime_checkable
class PeriodicEvaluation(Protocol):
    """What is measured before the first step, on the way and after the last."""

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after this many steps, before the last."""

    def evaluate(
        self,
        workdir: epath.Path,
        state: TrainState,
        pretrained: Mapping,
        writer: MetricWriter,
        signals: StopSignals,
    ) -> None:
        """Evaluates a state, writes metrics, and computes nothing again that is there already.

        Args:
            pretrained: of the parameters that the run began with what the step reads, on the mesh.

        Raises:
            EvaluationInterrupted: a signal came; what was counted is kept.
        """


@runtime_checkable
class Task(Protocol):
    """Weights that are opened, and what is done with them; all on the host, before any collective.

    Every process has one of its own, equal to the others'.
    """

    config: ResolvedConfig
    setup: StepSetup
    parameters: Mapping
    """The tree of which some leaves are trained, as it is before the first step; on the host."""
    weights_file: str
    """Name of the file in the workdir with the trained weights."""
    reads_positions: bool
    """Whether batches tell the position of each example, from which the objective draws."""

    def num_bytes(self) -> int:
        """Of that file."""

    def per_example(self, source: RecordSource) -> dict[str, np.ndarray]:
        """Further fields of a Batch, one row for each example of the source."""

    def context(self, source: RecordSource) -> Any:
        """Arrays that the objective reads beside parameters and batch, on the host."""

    def make_evaluation(self) -> PeriodicEvaluation | None:
        """None where there is no data set to evaluate."""

    def identity(self, source: RecordSource) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed from, beside data, seed, batch size."""

    def write(self, path: epath.Path, trainable: Mapping) -> str | None:
        """Writes the trained weights, or says why they are in the checkpoints alone.

        Args:
            trainable: the trained leaves, on the host.
        """
