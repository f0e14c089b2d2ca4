"""Each point of a run is at the service once, whatever stops the run or the service."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from etils import epath

from maft_jax.config import Config
from maft_jax.runtime.metric_logging import JsonLinesWriter, truncate_metrics
from maft_jax.tracking import tracker
from maft_jax.tracking.tracker import Tracker, check_client, tracked
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import small_config


class Service:
    """Keeps a point after some seconds, those that wait at the end, and forgets them at a kill."""

    def __init__(self, seconds_to_keep: float):
        self.seconds_to_keep = seconds_to_keep
        self.id, self.kept, self.waiting, self.ends, self.now = "first", [], [], [], 0.0
        self.opened, self.working = [], True

    def open(self, workdir, run_id, settings):
        self._work()
        self.opened.append((run_id, settings))
        return self

    def has(self, step, name):
        return not self.waiting and any(s == step and name in point for s, point in self.kept)

    def log(self, index, step, scalars):
        self._work()
        assert index == len(self.kept) + len(self.waiting)
        self.waiting.append((self.now, (step, scalars)))
        self.keep(self.now - self.seconds_to_keep)

    def keep(self, until):
        self.kept += [point for then, point in self.waiting if then <= until]
        self.waiting = [(then, point) for then, point in self.waiting if then > until]

    def finish(self, complete):
        self.keep(np.inf)
        self.ends.append(complete)

    def _work(self):
        if not self.working:
            raise ConnectionError("nobody listens at http://me:secret@there")


@dataclasses.dataclass
class Run:
    """A run of 20 steps with a point of training at each, and of evaluation at every fifth."""

    workdir: epath.Path
    service: Service

    def tracker(self) -> Tracker:
        return Tracker(
            "wandb", self.service.open, self.workdir, {"seed": 1}, lambda: self.service.now
        )

    def expected(self, last: int = 20) -> list[tuple[int, dict]]:
        points = []
        for step in range(last + 1):
            training = {"loss": 1 / (step + 1), "seconds_per_step": 0.5}
            points += [(step, training)] if step else []
            points += [(step, {"evaluation/miou": float(step)})] if step % 5 == 0 else []
        return points

    def train(self, resumed_at: int, killed_after: int | None = None) -> None:
        """Writes the points after a checkpoint, to the end or to a kill after so many."""
        truncate_metrics(self.workdir, resumed_at)
        json_lines = JsonLinesWriter(self.workdir / "metrics.jsonl")
        told = [json.loads(line) for line in self._lines()]
        known = {(record["step"], "loss" in record) for record in told}
        current = self.tracker()
        points = [p for p in self.expected() if (p[0], "loss" in p[1]) not in known]
        for step, scalars in points[:killed_after]:
            self.service.now += 1.0
            json_lines.write_scalars(step, scalars)
            current.write_scalars(step, scalars)
        if killed_after is None:
            current.finish(True)
        self.service.waiting.clear()

    def _lines(self) -> list[str]:
        path = self.workdir / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=[0.0, 7.0], ids=["keeps at once", "keeps later"])
def run(request, tmp_path) -> Run:
    return Run(epath.Path(tmp_path), Service(request.param))


@pytest.mark.parametrize("kills", [(), ((0, 1),), ((0, 9), (5, 3)), ((0, 14), (10, 1), (10, 9))])
def test_every_point_is_there_once_after_kills(run, kills):
    for resumed_at, killed_after in kills:
        run.train(resumed_at, killed_after)
    run.train(kills[-1][0] if kills else 0)
    assert run.service.kept == run.expected()
    assert run.service.ends == [True]
    ids = [run_id for run_id, _ in run.service.opened]
    assert ids[0] is None and set(ids[1:]) <= {"first"}


def test_point_that_was_written_but_not_noted_is_not_written_again(tmp_path):
    run = Run(epath.Path(tmp_path), Service(0.0))
    run.train(0, 8)
    before = (tmp_path / "tracking.json").read_bytes()
    run.train(5, 2)  # step 6, which was there, and 7
    (tmp_path / "tracking.json").write_bytes(before)
    run.train(5)
    assert sorted(run.service.kept, key=str) == sorted(run.expected(), key=str)


def test_service_that_fails_is_warned_of_once_and_gets_all_points_later(run, caplog):
    current, service = run.tracker(), run.service
    service.working = False
    points = run.expected()
    for step, scalars in points[:10]:
        current.write_scalars(step, scalars)
    service.working = True
    current.write_scalars(*points[10])
    assert not service.opened, "it is tried again, but not with every point"
    service.now += 601
    current.write_scalars(*points[11])
    service.working = False
    current.write_scalars(*points[12])
    service.working = True
    current.finish(False)
    assert service.kept == points[:13] and service.ends == [False]
    (message,) = [one for one in caplog.messages if "nobody listens" in one]
    assert "config.tracking=wandb: ConnectionError" in message and "training goes on" in message
    assert "http://there" in message


def test_what_a_run_wrote_before_it_was_tracked_is_written_too(run):
    json_lines = JsonLinesWriter(run.workdir / "metrics.jsonl")
    for step, scalars in run.expected(5):
        json_lines.write_scalars(step, scalars | {"broken": float("nan")})
    run.train(5)
    assert run.service.kept == run.expected()


def test_another_service_begins_anew(run, caplog):
    run.train(0, 4)
    content = (run.workdir / "tracking.json").read_text()
    (run.workdir / "tracking.json").write_text(content.replace("wandb", "mlflow"))
    assert run.tracker()._progress.run is None and not caplog.messages
    damaged = '{"service": "wandb", "run": "first", "last_steps": %s}'
    for content in ("{", damaged % "3", damaged % '{"training": "a"}'):
        (run.workdir / "tracking.json").write_text(content)
        caplog.clear()
        assert run.tracker()._progress.run is None
        assert "another run begins" in caplog.text


def test_runs_are_not_tracked_unless_they_say_so(tmp_path):
    with tracked(Config(), epath.Path(tmp_path), begin=True) as writers:
        assert writers == []
    assert not [*tmp_path.iterdir()]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.jax, "process_index", lambda: 1)
    with tracked(Config(tracking="wandb"), epath.Path(tmp_path), begin=True) as writers:
        assert writers == []


def test_missing_client_is_refused_before_anything_is_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    config = small_config({"data.root": "nowhere"}, tracking="mlflow")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match=r"tracking=mlflow: .* pip install 'maft_jax\[mlflow\]'"),
    ):
        train_and_evaluate(config, tmp_path)
    assert not caplog.messages
    check_client("none")
