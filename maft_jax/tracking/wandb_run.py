"""A run at Weights & Biases. The only user of wandb."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

_SECONDS_TO_BEGIN = 30.0
_SECONDS_TO_FINISH = 120.0
"""For the upload of what the network has not taken yet; the rest stays for `wandb sync`."""


class WandbRun:
    """A `TrackedRun`.

    The service's own steps count points, so that it refuses one that comes again, and takes what
    belongs to a step of training that was written before; the axis of curves is the metric `step`.
    """

    seconds_to_keep = 30.0  # in offline mode its process writes to the disk every 15 s

    def __init__(self, workdir: epath.Path, run_id: str | None, settings: Mapping[str, Any]):
        """Begins or resumes a run; WANDB_MODE and the like mean what they mean to the client."""
        os.environ.setdefault("WANDB_SILENT", "true")  # or it would ask for a login, and wait
        import wandb

        self.id = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "maft_jax"),
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=self.id,
            resume="allow",
            dir=None if "://" in str(workdir) else str(workdir),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                init_timeout=_SECONDS_TO_BEGIN,
                finish_timeout=_SECONDS_TO_FINISH,
            ),
        )
        self._run.config.update(dict(settings), allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def has(self, step: int, name: str) -> bool:
        return False

    def log(self, index: int, step: int, scalars: Mapping[str, float]) -> None:
        # Without `commit` the row would wait for the next one, in the client's memory.
        self._run.log({"step": step, **scalars}, step=index, commit=True)

    def finish(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)
