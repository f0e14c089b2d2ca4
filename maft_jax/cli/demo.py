"""Trains a small random CLIP on built-in pictures: a minute on a laptop, nothing to download.

    python -m maft_jax.cli.demo --workdir=runs/demo

It draws pictures of shapes with label maps, makes superpixel proposals for them, and trains 60
steps. Stop it with Ctrl-C and give the same command: it resumes. Afterwards the folder holds
training_data.png, metrics for TensorBoard, checkpoints, and tuned.safetensors for PyTorch.
"""

import pathlib
import sys

from absl import app, flags

from maft_jax.config import Config, from_config_dict
from maft_jax.configs.folder import get_config
from maft_jax.console import log_to_stderr, run_and_report

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "folder to write to")


def demo_config(workdir: pathlib.Path) -> Config:
    """The tiny variant of configs/folder.py on built-in pictures, which it draws if needed."""
    from input_pipeline.sample_folder import write_sample_folder

    data = workdir / "data"
    if not data.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_sample_folder(data, num_images=24)
    config = get_config("tiny")
    config.data.root = str(data)
    config.data.cache_dir = str(workdir / "cache")
    config.model.pretrained = "random:tiny"
    return from_config_dict(config)


def main(argv: list[str]) -> int:
    """Trains, says what to do next, and returns the exit code."""
    del argv
    log_to_stderr()
    workdir = pathlib.Path(_WORKDIR.value)

    def train():
        from maft_jax.train_loop import train_and_evaluate

        train_and_evaluate(demo_config(workdir), workdir)

    code = run_and_report(train)
    if code == 0:
        print(
            f"\nLook at {workdir}/training_data.png and `tensorboard --logdir={workdir}`.\n"
            "What was learned, against the CLIP that it began with, on the same pictures:\n"
            "  python -m maft_jax.cli.diagnose --config=configs/eval_only.py --out=diagnosis "
            f"--config.checkpoint={workdir} --config.evaluation.roots.folder={workdir}/data\n"
            "  python -m maft_jax.cli.predict --out=predicted "
            f"--weights={workdir} --image={workdir}/data/images --classes_file={workdir}/data/"
            "classes.txt\n"
            "Next, with your own photos and CLIP weights:\n"
            "  python -m maft_jax.main --config=configs/folder.py --workdir=runs/mine "
            "--config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt",
            file=sys.stderr,
        )
    return code


def run() -> None:
    """Parses the command line and exits with main's code."""
    app.run(main)


if __name__ == "__main__":
    run()
