"""Evaluation by two real processes, whose examples are not equally many, against one."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from tests.evaluators.small_evaluations import (
    confusion_of,
    evaluation_config,
    make_evaluation_data,
    set_up,
)
from tests.hosts import free_port
from tests.runs import REPOSITORY, finish, start


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Fifteen images, whose records are where all hosts can read them."""
    folder = tmp_path_factory.mktemp("evaluation_on_hosts")
    data = make_evaluation_data(folder, num_images=15)
    one_host, _ = set_up(evaluation_config(data))
    shutil.copytree(one_host.data_sets[0].folder, folder / "records/folder")
    return data | {"evaluation.roots.folder": "", "evaluation.records": str(folder / "records")}


@pytest.mark.slow
def test_two_processes_count_what_one_counts_also_after_an_interruption(settings, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"mesh.fsdp": 2}))
    program = [
        sys.executable,
        str(REPOSITORY / "tests/evaluators/evaluate_on_hosts.py"),
        str(free_port()),
    ]
    processes = [start([*program, str(i), "2", "2", str(tmp_path)]) for i in range(2)]
    outputs = [finish(process) for process in processes]
    expected = confusion_of(evaluation_config(settings), tmp_path / "one_process")
    one, weights = set_up(evaluation_config(settings))
    maps = np.stack(one.label_maps(one.data_sets[0], weights.parameters["visual"], 5))
    assert expected.sum() == 15 * 120 * 160
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as found:
            np.testing.assert_array_equal(found["confusion"], expected)
            np.testing.assert_array_equal(found["of_report"], expected)
            np.testing.assert_array_equal(found["maps"], maps)
        assert "SIGTERM after 12 of 15 images of folder" in outputs[i]
        assert "folder.protocol.short_side is 121 for process 1 and 120 for process 0" in outputs[i]
    assert sorted(os.listdir(tmp_path / "process_0")) == [
        "folder.json",
        "folder_classes.csv",
        "folder_confusion.npz",
        "summary.csv",
    ]
    assert not (tmp_path / "process_1").exists(), "the first process alone writes"
