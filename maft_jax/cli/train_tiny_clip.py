"""Trains the tiny CLIP of shapes world from nothing, on pictures and captions that it draws.

    python -m maft_jax.cli.train_tiny_clip --workdir=runs/tiny_clip

As CLIP was trained: contrastively on whole pictures and sentences, with all classes named and no
masks. Half an hour on two CPU cores, 2 GB of memory. WORKDIR then holds clip.safetensors (OpenAI's
layout, float16), which every command here reads like any other CLIP, and clip.json with the
settings, the loss of every step and what it answered when quizzed. Ctrl-C keeps what was learned,
and the same command goes on. The weights that come with the package were made by this command.
--tower=convnext trains a ConvNeXt for the text tower of these, which stays as it is.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.
"""

import pathlib

from absl import flags

from maft_jax.cli import command_line
from maft_jax.runtime.console import log_to_stderr, run_and_report
from maft_jax.shapes_world.clip_training_config import TOWERS, ClipTrainingConfig

_DEFAULTS = ClipTrainingConfig()
_WORKDIR = command_line.define_path("workdir", "runs/tiny_clip", "folder to write to")
_TOWER = flags.DEFINE_enum(
    "tower", _DEFAULTS.tower, TOWERS, "convnext is trained for the text tower of the package's CLIP"
)
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "another one is another CLIP", lower_bound=0)
_NUM_STEPS = flags.DEFINE_integer("num_steps", _DEFAULTS.num_steps, "of training", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", _DEFAULTS.batch_size, "pictures per step", lower_bound=2
)
_NUM_PICTURES = flags.DEFINE_integer(
    "num_pictures", _DEFAULTS.num_pictures, "that are drawn", lower_bound=100
)
_NUM_CAPTIONS = flags.DEFINE_integer(
    "num_captions",
    _DEFAULTS.num_captions,
    "of each picture in a step",
    lower_bound=1,
    upper_bound=4,
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", _DEFAULTS.learning_rate, "highest, after the warm-up", lower_bound=0
)


def main(arguments: list[str]) -> int:
    """Trains, and returns the exit code."""
    del arguments
    log_to_stderr()

    def train():
        from maft_jax.shapes_world.clip_training import train_clip

        config = ClipTrainingConfig(
            tower=_TOWER.value,
            seed=_SEED.value,
            num_steps=_NUM_STEPS.value,
            batch_size=_BATCH_SIZE.value,
            num_captions=_NUM_CAPTIONS.value,
            num_pictures=_NUM_PICTURES.value,
            learning_rate=_LEARNING_RATE.value,
        )
        weights = train_clip(config, pathlib.Path(_WORKDIR.value))
        print(f"{weights}\nfine-tune it: python -m maft_jax.cli.demo --clip={weights}")

    return run_and_report(train)


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, command_line.flags_alone)


if __name__ == "__main__":
    run()
