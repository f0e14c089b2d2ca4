"""Draws what the trainer sees: images, named labels and proposals after augmentation.

It also prints how many images and pixels show each class, and draws that beside the picture, as
training_data_labels.png.

    python -m maft_jax.cli.visualize --config=configs/folder.py --out=training_data.png \\
        --config.data.root=my_photos

Proposals are computed first if there are none yet. Training writes the same picture to its
workdir and to TensorBoard at step 0. No CLIP weights are needed.

Settings that matter here: config.data, config.proposals, config.seed and config.batch_size.
"""

from absl import flags
from etils import epath

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.runtime.console import log_to_stderr, run_and_report

__doc__ += describe_fields(Config, "--config.")

_OUT = command_line.define_path("out", "training_data.png", "picture to write")
_STEP = flags.DEFINE_integer("step", 0, "training step whose batch is drawn", lower_bound=0)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 8, "rows of the picture, at most config.batch_size", lower_bound=1
)


def main(config: Config) -> int:
    """Draws, and returns the exit code."""
    log_to_stderr()

    def draw():
        from maft_jax.pictures.label_chart import draw_label_counts
        from maft_jax.runtime.atomic_files import atomic_write_bytes, clear_leftovers, save_picture
        from maft_jax.training.training_data import draw_training_data, open_training_data

        source = open_training_data(config)
        picture = draw_training_data(source, config, _NUM_EXAMPLES.value, _STEP.value)
        out = epath.Path(_OUT.value)
        chart = out.with_name(f"{out.stem}_labels.png")
        clear_leftovers(out.parent, out.name, chart.name)
        save_picture(out, picture)
        atomic_write_bytes(chart, draw_label_counts(source.label_counts))
        print(f"{source.label_counts.table()}\nwrote {out} and {chart}")

    return run_and_report(draw)


def run() -> None:
    """Parses the command line and exits with main's code."""
    config_flags.run(main, require_weights=False)


if __name__ == "__main__":
    run()
