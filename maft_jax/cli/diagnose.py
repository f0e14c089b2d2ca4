"""Shows what fine-tuning changes in CLIP: figures and numbers, frozen and tuned side by side.

    python -m maft_jax.cli.diagnose --config=configs/eval_only.py --out=diagnosis \\
        --config.checkpoint=runs/first --config.evaluation.roots.folder=my_photos

draws, on the same proposals, class scores against IoU, how alike the scores of an image's
proposals are, and the worst false positives; diagnosis.json has all numbers. The checkpoint is a
run's workdir, or a file of tuned weights with --config.model.pretrained=CLIP, from which it was
tuned. Without a checkpoint config.model.pretrained is diagnosed alone.

Settings that matter here: config.model, config.proposals, config.evaluation and config.data.
"""

from absl import flags
from etils import epath

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.runtime.console import log_to_stderr, run_and_report

__doc__ += describe_fields(Config, "--config.")

_OUT = command_line.define_path("out", "diagnosis", "folder to write to")
_DATASET = flags.DEFINE_string("dataset", "", "which of config.evaluation.roots, if several")
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 50, "how many images, the first of the data set; 0 = all", lower_bound=0
)
_NUM_FALSE_POSITIVES = flags.DEFINE_integer(
    "num_false_positives", 6, "how many of the worst false positives to draw", lower_bound=1
)


def main(config: Config) -> int:
    """Diagnoses, and returns the exit code."""
    log_to_stderr()

    def work():
        from maft_jax.diagnosis.diagnose import describe, diagnose

        numbers = diagnose(
            config,
            epath.Path(_OUT.value),
            num_images=_NUM_IMAGES.value,
            dataset=_DATASET.value,
            num_false_positives=_NUM_FALSE_POSITIVES.value,
        )
        print(f"{describe(numbers)}\nwrote {_OUT.value}")

    return run_and_report(work)


def run() -> None:
    """Parses the command line and exits with main's code."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
