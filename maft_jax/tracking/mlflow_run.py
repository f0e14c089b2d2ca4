"""A run at MLflow. The only user of mlflow."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

_MOST_CHARACTERS = 6000
"""Of a parameter."""


class MlflowRun:
    """A `TrackedRun`, in the file store WORKDIR/mlruns unless MLFLOW_TRACKING_URI says where."""

    seconds_to_keep = 0.0

    def __init__(self, workdir: epath.Path, run_id: str | None, settings: Mapping[str, Any]):
        """Begins or resumes a run; settings are parameters, which MLflow does not change later."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _file_store(workdir))
        if run_id is not None:
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        run = self._client.create_run(self._experiment(), run_name=workdir.name)
        self.id = run.info.run_id
        parameters = [
            Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in settings.items()
        ]
        self._client.log_batch(self.id, params=parameters)

    def has(self, step: int, name: str) -> bool:
        return any(point.step == step for point in self._client.get_metric_history(self.id, name))

    def log(self, index: int, step: int, scalars: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def finish(self, complete: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if complete else "KILLED")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "maft_jax")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)


_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # its lighter package has no other store for a folder
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the training waits; the tracker tries again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""What the client does unless the environment says otherwise."""


def _file_store(workdir: epath.Path) -> str:
    if "://" in str(workdir):
        raise ValueError(f"no file store in {workdir}; set MLFLOW_TRACKING_URI to a server")
    return pathlib.Path(workdir, "mlruns").as_uri()
