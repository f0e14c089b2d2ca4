"""Fine-tunes CLIP with mask proposals (MAFT), and evaluates it; or trains what proposes masks.

    python -m maft_jax.main --config=configs/folder.py --workdir=runs/first \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt
    python -m maft_jax.main --config=configs/eval_only.py --workdir=runs/eval \\
        --config.checkpoint=runs/first --config.evaluation.roots.voc2012=VOC2012

Training evaluates too, on the data sets of config.evaluation: before its first step, every
config.evaluation.every_steps and at its end. The second command evaluates alone, and with
--config.evaluation.frozen=True the CLIP that the checkpoint was tuned from (docs/evaluation.md).

--config=configs/generator_coco.py trains a generator of proposals (docs/generator_training.md).

Several hosts: the same command on each. On TPU VMs and under srun the processes find each other;
elsewhere say how with --coordinator_address, --num_processes, --process_id (docs/many_hosts.md).

The same command resumes a run that was stopped; Ctrl-C and SIGTERM save first.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted and saved.

Every setting can be given as --config.NAME=VALUE:
"""

import os

from absl import flags

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.runtime.console import log_to_stderr, run_and_report, set_process_log_level

__doc__ += describe_fields(Config, "--config.")

_WORKDIR = command_line.define_path(
    "workdir", None, "folder of checkpoints, metrics, config.json and results of evaluation"
)
_WAIT = flags.DEFINE_bool(
    "wait", False, "where another run writes to the workdir, wait for its end instead of leaving"
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "several processes: HOST:PORT, a free port of the first one's host"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "several processes: how many", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "several processes: which one this is, from 0 on", lower_bound=0
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "seconds after which a silent process counts as dead", lower_bound=10
)


def main(config: Config) -> int:
    """Trains, or evaluates alone, and returns the exit code."""
    log_to_stderr()

    def work():
        from maft_jax.runtime.processes import choose_launch, joined

        launch = choose_launch(
            _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ
        )
        with joined(launch, _HEARTBEAT_TIMEOUT.value) as process:
            set_process_log_level(process)
            if config.task == "evaluate":
                _evaluate(config, process)
            else:
                from maft_jax.training.train_loop import train_and_evaluate

                train_and_evaluate(config, _WORKDIR.value, _WAIT.value)

    return run_and_report(work)


def _evaluate(config: Config, process: int) -> None:
    from maft_jax.evaluators.checkpoint import evaluate_checkpoint

    report = evaluate_checkpoint(config, _WORKDIR.value, _WAIT.value)
    if process == 0:
        print(report.table())


def run() -> None:
    """Parses the command line and exits with main's code."""
    flags.register_validator("workdir", bool, "expected the run's folder: --workdir=runs/first")
    config_flags.run(main)


if __name__ == "__main__":
    run()
