"""One of several processes that evaluate segments; test_segments_on_hosts.py starts them.

    python evaluate_segments_on_hosts.py PORT PROCESS PROCESSES FOLDER

FOLDER holds settings.json, and gets the numbers of each process.
"""

import json
import os
import pathlib
import signal
import sys

import jax

PORT, PROCESS, PROCESSES = map(int, sys.argv[1:4])
FOLDER = pathlib.Path(sys.argv[4])

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"localhost:{PORT}", PROCESSES, PROCESS)

    from etils import epath

    from maft_jax.evaluators import unfinished_counts
    from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals
    from tests.evaluators.segment_folders import of_task
    from tests.evaluators.small_evaluations import evaluation_config, set_up

    settings = json.loads((FOLDER / "settings.json").read_text())
    own = epath.Path(FOLDER / f"process_{PROCESS}")
    evaluation, weights = set_up(evaluation_config(settings), PROCESSES)
    arguments = weights.parameters["visual"], weights.origin, own
    found = {}
    for task in ("panoptic", "instance"):
        evaluator = of_task(task, evaluation, weights.config)
        try:
            with StopSignals() as signals:
                if PROCESS == 1:  # both stop three batches later
                    os.kill(os.getpid(), signal.SIGTERM)
                evaluator.evaluate(*arguments, signals)
            raise AssertionError("the evaluation was not interrupted")
        except EvaluationInterrupted as error:
            print(error)
        if PROCESS == 0:  # whose clock alone counts
            unfinished_counts.SECONDS_BETWEEN_SAVES = 0.0
        for again in (False, True):  # the second time of files, which the first process has
            [result] = evaluator.evaluate(*arguments)
            found[f"{task} {again}"] = [dict(result.numbers), list(result.classes)]
    (FOLDER / f"{PROCESS}.json").write_text(json.dumps(found))
    jax.distributed.shutdown()
