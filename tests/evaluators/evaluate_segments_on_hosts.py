"""One of several processes that evaluate together; test_segment_evaluation.py starts them.

    python evaluate_segments_on_hosts.py PORT PROCESS PROCESSES FOLDER

FOLDER holds settings.json, and gets the numbers of each process.
"""

import json
import pathlib
import sys

import jax

PORT, PROCESS, PROCESSES = map(int, sys.argv[1:4])
FOLDER = pathlib.Path(sys.argv[4])

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(
        f"localhost:{PORT}", PROCESSES, PROCESS, heartbeat_timeout_seconds=10
    )

    from maft_jax.evaluators.checkpoint import evaluate_checkpoint
    from tests.evaluators.small_evaluations import evaluation_config

    settings = json.loads((FOLDER / "settings.json").read_text())
    found = {}
    for task in ("panoptic", "instance"):
        config = evaluation_config(settings, evaluation__task=task)
        for again in (False, True):  # the second time of files, which the first process has
            report = evaluate_checkpoint(config, FOLDER / f"workdir_{PROCESS}")
            [result] = report.results
            found[f"{task}{again}"] = [dict(result.numbers), list(result.classes)]
    (FOLDER / f"{PROCESS}.json").write_text(json.dumps(found))
    jax.distributed.shutdown()
