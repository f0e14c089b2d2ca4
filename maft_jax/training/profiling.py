"""A trace of a few training steps, for TensorBoard and XProf; see docs/many_hosts.md."""

import logging

import jax
from etils import epath

NUM_STEPS = 5

PROFILE_FOLDER = "profile"

logger = logging.getLogger(__name__)


class StepProfile:
    """Context that traces a few steps of the first process into `workdir`/profile."""

    def __init__(self, workdir: epath.Path, first_step: int):
        """`first_step` of NUM_STEPS; 0 = none."""
        self._folder = workdir / PROFILE_FOLDER
        self._first = first_step if jax.process_index() == 0 else 0
        self._tracing = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def before(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Context for the dispatch of a step, which names it in the trace."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, last: bool, results) -> None:
        """Ends the trace once the devices have computed the `results` of its last step."""
        if self._tracing and (last or step == self._first + NUM_STEPS - 1):
            jax.block_until_ready(results)
            self._stop()
            logger.info("profile of steps %d to %d: %s", self._first, step, self._folder)

    def _stop(self):
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
