"""What the clients of both services are asked to do; the real ones are tried by hand."""

import os

import pytest
from etils import epath

from maft_jax.tracking.mlflow_run import MlflowRun
from maft_jax.tracking.wandb_run import WandbRun
from tests.tracking.clients_on_path import made_up_client

SETTINGS = {"seed": 0, "data.short_sides": (64, 80), "data.templates": ("a {}.",) * 2000}


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with made_up_client("wandb") as module:
        yield module


@pytest.fixture
def mlflow(monkeypatch):
    for name in list(os.environ):
        if name.startswith("MLFLOW"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with made_up_client("mlflow") as module:
        yield module


def test_wandb_run_goes_on_with_its_curve(wandb, tmp_path):
    workdir = epath.Path(tmp_path) / "mine"
    first = WandbRun(workdir, None, SETTINGS)
    first.log(0, 0, {"evaluation/miou": 0.5})
    first.log(1, 10, {"loss": 2.0})
    resumed = WandbRun(workdir, first.id, SETTINGS | {"seed": 1})
    resumed.log(1, 10, {"loss": 2.0})  # the service has it, and takes it no more
    resumed.log(2, 10, {"evaluation/miou": 0.6})  # at a step that it had seen
    resumed.finish(True)
    run = wandb.runs[first.id]
    assert run.rows == [
        (0, {"step": 0, "evaluation/miou": 0.5}),
        (1, {"step": 10, "loss": 2.0}),
        (2, {"step": 10, "evaluation/miou": 0.6}),
    ]
    assert run.axes == {"step": None, "*": "step"}
    assert (run.project, run.name, run.exit_codes) == ("maft_jax", "mine", [0])
    assert run.config["seed"] == 1 and len(run.config) == len(SETTINGS)


def test_wandb_is_told_of_a_run_that_does_not_end(wandb, tmp_path):
    run = WandbRun(epath.Path(tmp_path), None, {})
    run.finish(False)
    assert wandb.runs[run.id].exit_codes == [1]


def test_mlflow_run_goes_on_in_the_store_of_the_workdir(mlflow, tmp_path):
    workdir = epath.Path(tmp_path) / "mine"
    first = MlflowRun(workdir, None, SETTINGS)
    first.log(0, 10, {"loss": 2.0, "learning_rate": 0.1})
    first.finish(False)
    resumed = MlflowRun(workdir, first.id, SETTINGS | {"seed": 1})
    assert resumed.has(10, "loss") and not resumed.has(20, "loss")
    resumed.log(1, 20, {"loss": 1.0})
    resumed.finish(True)
    assert list(mlflow.stores) == [f"file://{workdir}/mlruns"]
    (store,) = mlflow.stores.values()
    (run,) = store["runs"].values()
    assert run["name"] == "mine" and run["status"] == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    points = [(metric.key, metric.step, metric.value) for metric in run["metrics"]]
    assert points == [("loss", 10, 2.0), ("learning_rate", 10, 0.1), ("loss", 20, 1.0)]
    parameters = {param.key: param.value for param in run["params"]}
    assert parameters["data.short_sides"] == "(64, 80)"
    assert len(parameters["data.templates"]) == 6000, "the most that MLflow keeps"


def test_mlflow_server_is_where_the_environment_says(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    MlflowRun(epath.Path(tmp_path), None, {})
    MlflowRun(epath.Path(tmp_path), None, {})
    assert list(mlflow.stores) == ["http://127.0.0.1:5000"]
    assert mlflow.stores["http://127.0.0.1:5000"]["experiments"] == ["maft_jax"]
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"


def test_bucket_has_no_store_of_files(mlflow):
    with pytest.raises(ValueError, match=r"gs://runs/first; set MLFLOW_TRACKING_URI"):
        MlflowRun(epath.Path("gs://runs/first"), None, {})
