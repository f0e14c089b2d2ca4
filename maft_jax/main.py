"""Fine-tunes CLIP with mask proposals (MAFT), and evaluates it.

    python -m maft_jax.main --config=configs/folder.py --workdir=runs/first \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt
    python -m maft_jax.main --config=configs/eval_only.py --workdir=runs/eval \\
        --config.checkpoint=runs/first --config.evaluation.roots.voc2012=VOC2012

Training evaluates too, on the data sets of config.evaluation: before its first step, every
config.evaluation.every_steps and at its end. The second command evaluates alone, and with
--config.evaluation.frozen=True the CLIP that the checkpoint was tuned from (docs/evaluation.md).

The same command resumes a run that was stopped; Ctrl-C and SIGTERM save first.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted and saved.

Every setting can be given as --config.NAME=VALUE:
"""

from absl import flags

from maft_jax.cli import config_flags
from maft_jax.config import Config
from maft_jax.console import log_to_stderr, run_and_report
from maft_jax.settings import describe_fields

__doc__ += describe_fields(Config, "--config.")

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of checkpoints, metrics, config.json and results of evaluation"
)


def main(config: Config) -> int:
    """Trains, or evaluates alone, and returns the exit code."""
    log_to_stderr()

    def train():
        from maft_jax.train_loop import train_and_evaluate

        train_and_evaluate(config, _WORKDIR.value)

    def evaluate():
        from maft_jax.evaluators.checkpoint import evaluate_checkpoint

        print(evaluate_checkpoint(config, _WORKDIR.value).table())

    return run_and_report(evaluate if config.task == "evaluate" else train)


def run() -> None:
    """Parses the command line and exits with main's code."""
    flags.register_validator("workdir", bool, "expected the run's folder: --workdir=runs/first")
    config_flags.run(main)


if __name__ == "__main__":
    run()
