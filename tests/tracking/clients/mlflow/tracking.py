"""The client, which does not mind if a point is written twice."""

import types

import mlflow


class MlflowClient:
    def __init__(self, tracking_uri):
        empty = {"experiments": [], "runs": {}}
        self._store = mlflow.stores.setdefault(tracking_uri, empty)

    def get_experiment_by_name(self, name):
        known = name in self._store["experiments"]
        return types.SimpleNamespace(experiment_id=name) if known else None

    def create_experiment(self, name):
        self._store["experiments"].append(name)
        return name

    def create_run(self, experiment_id, *, run_name):
        run_id = f"{experiment_id}-{len(self._store['runs'])}"
        run = {"name": run_name, "params": [], "metrics": [], "status": ["RUNNING"]}
        self._store["runs"][run_id] = run
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self._store["runs"][run_id]["status"].append(status)

    def set_terminated(self, run_id, status):
        self._store["runs"][run_id]["status"].append(status)

    def log_batch(self, run_id, metrics=(), params=()):
        known = [param.key for param in self._store["runs"][run_id]["params"]]
        assert not {param.key for param in params} & set(known)
        self._store["runs"][run_id]["params"] += params
        self._store["runs"][run_id]["metrics"] += metrics

    def get_metric_history(self, run_id, key):
        return [one for one in self._store["runs"][run_id]["metrics"] if one.key == key]
