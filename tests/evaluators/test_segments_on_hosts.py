"""PQ and AP by two real processes, whose images are not equally many, against one."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from etils import epath

from tests.evaluators.segment_folders import of_task, segment_settings, written_files
from tests.evaluators.small_evaluations import evaluation_config, set_up
from tests.hosts import Hosts, free_port
from tests.runs import REPOSITORY


@pytest.mark.slow
def test_two_processes_find_what_one_does_also_after_an_interruption(tmp_path):
    settings = segment_settings(tmp_path, num_images=9)
    one, weights = set_up(evaluation_config(settings))
    shutil.copytree(one.data_sets[0].folder, tmp_path / "records/folder")
    settings |= {"evaluation.records": str(tmp_path / "records")}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    program = str(REPOSITORY / "tests/evaluators/evaluate_segments_on_hosts.py")
    start = [sys.executable, program, str(free_port())]
    hosts = Hosts([[*start, str(i), "2", str(tmp_path)] for i in range(2)], tmp_path / "logs")
    outputs = hosts.finish(timeout=300)
    for task, main in (("panoptic", "pq"), ("instance", "ap")):
        alone = of_task(task, one, weights.config)
        folder = epath.Path(tmp_path / "alone")
        [result] = alone.evaluate(weights.parameters["visual"], weights.origin, folder)
        assert 0.02 < result.numbers[main] < 0.98, "not all, not nothing"
        for i in range(2):
            found = json.loads((tmp_path / f"{i}.json").read_text())
            for again in (False, True):
                numbers, classes = found[f"{task} {again}"]
                np.testing.assert_equal(numbers, dict(result.numbers))
                np.testing.assert_equal(classes, list(result.classes))
    for output in outputs:
        assert output.count("SIGTERM after 6 of 9 images of folder") == 2
    files = written_files(tmp_path / "process_0")
    assert len(files) == 2 + 9 + 2 * 2 and files == written_files(tmp_path / "alone")
    results = {f"folder_{task}.json" for task in ("panoptic", "instance")}
    assert set(os.listdir(tmp_path / "process_0")) == results | {n.split("/")[0] for n in files}
    assert not (tmp_path / "process_1").exists(), "the first process alone writes"
