"""One of several processes that evaluate together; test_evaluation_on_hosts.py starts them.

    python evaluate_on_hosts.py PORT PROCESS PROCESSES DEVICES FOLDER

FOLDER holds settings.json, and gets counts and predictions of each process.
"""

import json
import os
import pathlib
import signal
import sys

import jax

PORT, PROCESS, PROCESSES, DEVICES = map(int, sys.argv[1:5])
FOLDER = pathlib.Path(sys.argv[5])

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(
        f"localhost:{PORT}", PROCESSES, PROCESS, heartbeat_timeout_seconds=10
    )

    import numpy as np
    from etils import epath

    from maft_jax.evaluators.checkpoint import evaluate_checkpoint
    from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals
    from tests.evaluators.small_evaluations import evaluation_config, set_up

    settings = json.loads((FOLDER / "settings.json").read_text())
    config = evaluation_config(settings)
    own = FOLDER / f"process_{PROCESS}"
    evaluation, weights = set_up(config, PROCESSES * DEVICES, fsdp=config.mesh.fsdp)
    visual = weights.parameters["visual"]
    try:
        with StopSignals() as signals:
            if PROCESS == 1:  # both stop three batches later
                os.kill(os.getpid(), signal.SIGTERM)
            evaluation.evaluate(visual, weights.origin, epath.Path(own), signals)
        raise AssertionError("the evaluation was not interrupted")
    except EvaluationInterrupted as error:
        print(error)
    [result] = evaluation.evaluate(visual, weights.origin, epath.Path(own))
    maps = evaluation.label_maps(evaluation.data_sets[0], visual, 5)
    report = evaluate_checkpoint(config, FOLDER / f"workdir_{PROCESS}")
    differing = evaluation_config(settings | {"evaluation.short_side": 120 + PROCESS})
    try:
        evaluate_checkpoint(differing, FOLDER / f"differing_{PROCESS}")
        raise AssertionError("hosts of different settings evaluated together")
    except ValueError as error:
        print(error)
    np.savez(
        FOLDER / f"{PROCESS}.npz",
        confusion=result.confusion,
        of_report=report.results[0].confusion,
        maps=np.stack(maps),
    )
    jax.distributed.shutdown()
