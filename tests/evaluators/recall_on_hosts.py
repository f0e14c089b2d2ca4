"""One of two processes that measure a generator's recall; test_generator_recall.py starts them.

    python recall_on_hosts.py PORT PROCESS FOLDER

FOLDER holds settings.json, and gets the metrics, which the first process writes.
"""

import contextlib
import json
import pathlib
import sys

import jax
from etils import epath

from maft_jax.config import from_config_dict, preset
from maft_jax.runtime.metric_logging import make_writer
from maft_jax.runtime.sharding import make_mesh
from maft_jax.runtime.stop_signals import StopSignals
from maft_jax.state.train_state import TrainState
from maft_jax.training.generator_task import open_generator_task


def measure_recall(settings: dict, workdir: pathlib.Path) -> None:
    """Of a generator that is about to be trained, into metrics.jsonl."""
    config = preset("official")
    config.update_from_flattened_dict(settings)
    config = from_config_dict(config)
    evaluation = open_generator_task(config, make_mesh(config.mesh)).make_evaluation()
    begun, writer = TrainState(0, {}, ()), make_writer(epath.Path(workdir), 1, [])
    with contextlib.closing(writer), StopSignals() as signals:
        evaluation.evaluate(epath.Path(workdir), begun, {}, writer, signals)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    own, given = int(sys.argv[2]), pathlib.Path(sys.argv[3])
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, own, heartbeat_timeout_seconds=10)
    measure_recall(json.loads((given / "settings.json").read_text()), given)
    jax.distributed.shutdown()
