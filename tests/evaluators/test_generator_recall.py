"""Recall while a generator is trained: of two real processes as of one."""

import json
import sys

import pytest

from input_pipeline.shapes_world.folder import write_shapes_world
from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.config import from_config_dict, preset
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from tests.evaluators.recall_on_hosts import measure_recall
from tests.hosts import free_port
from tests.runs import REPOSITORY, finish, read_metrics, start


@pytest.mark.slow
def test_two_processes_measure_the_recall_that_one_measures(tmp_path):
    """Of five pictures one process has three and the other two."""
    write_shapes_world(tmp_path / "world", 5, num_train=1, num_val=5)
    settings = {
        "task": "train_generator",
        "data.dataset": "shapes_world",
        "data.root": str(tmp_path / "world"),
        "data.unseen_classes": unseen_classes(0),
        "data.cache_dir": str(tmp_path / "cache"),
        "proposals.generator": "ground_truth",
        "generator.weights": "built-in:shapes_world",
        "generator.classes": "agnostic",
        "evaluation.short_side": 128,
        "evaluation.max_long_side": 128,
    }
    of_records = {"data.split": "val", "data.records": str(tmp_path / "records/shapes_world")}
    config = preset("official")
    config.update_from_flattened_dict(settings | of_records)
    precompute(job_from_config(from_config_dict(config, require_weights=False)), num_workers=1)
    settings |= {"evaluation.records": str(tmp_path / "records")}
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    (together / "settings.json").write_text(json.dumps(settings))
    program = str(REPOSITORY / "tests/evaluators/recall_on_hosts.py")
    words = [sys.executable, program, str(free_port())]
    for process in [start([*words, str(own), str(together)]) for own in (0, 1)]:
        finish(process)
    alone.mkdir()
    measure_recall(settings, alone)
    [expected] = read_metrics(alone)
    assert expected["evaluation/shapes_world/best_iou_unseen"] > 0.5
    assert read_metrics(together) == [expected]
