"""The whole method in one call: a world, frozen CLIP, fine-tuning, tuned CLIP, pictures."""

import dataclasses
import logging
import pathlib

from etils import epath

from input_pipeline.shapes_world.vocabulary import unseen_classes
from maft_jax.config import Config
from maft_jax.diagnosis.diagnose import describe, diagnose
from maft_jax.evaluators.during_training import RESULTS_FOLDER
from maft_jax.evaluators.results import EvaluationResult, read_result
from maft_jax.evaluators.tables import format_table
from maft_jax.shapes_world.panoptic_comparison import PICTURE, compare_panoptic
from maft_jax.shapes_world.worlds import DATASET, draw_world, world_config
from maft_jax.training.train_loop import train_and_evaluate

_NUM_DIAGNOSED = 40
_NUM_PICTURES = 4
_SPLIT_OF_GENERATOR = 0
"""Whose unseen classes the package's generator did not see either."""

logger = logging.getLogger(__name__)


def demonstrate(workdir: pathlib.Path, seed: int = 0, split: int = 0, clip: str = "") -> str:
    """Draws, trains, evaluates and diagnoses in `workdir`; returns what to tell the user.

    What an earlier call finished is not done again. The masks are those of the package's generator,
    which knows no label of an unseen class of split 0; of other splits they are drawn from labels.

    Args:
        seed: of the world and of training.
        split: zero-shot split, 0 to 2.
        clip: weights; empty = those of the package.

    Raises:
        ValueError: `workdir` holds a run with other settings, or `clip` is no CLIP.
        TrainingInterrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    data = workdir / "data"
    workdir.mkdir(parents=True, exist_ok=True)
    draw_world(data, seed)
    changes = {"evaluation.num_pictures": _NUM_PICTURES}
    if clip:
        changes["model.pretrained"] = clip
    masks = "learned" if split == _SPLIT_OF_GENERATOR else "drawn"
    if masks == "drawn":
        logger.info(
            "masks are drawn from labels: the package's generator learned from classes that are "
            "unseen in split %d",
            split,
        )
    config = world_config(data, workdir / "cache", seed, unseen_classes(split), changes, masks)
    train_and_evaluate(config, workdir)
    logger.info("comparing scores with IoUs on %d pictures", _NUM_DIAGNOSED)
    numbers = diagnose(
        dataclasses.replace(config, task="evaluate", checkpoint=str(workdir)),
        epath.Path(workdir / "diagnosis"),
        num_images=_NUM_DIAGNOSED,
    )
    frozen, tuned = (_result(workdir, step) for step in (0, config.num_steps))
    table = format_table([tuned], baseline=[frozen])
    objects = compare_panoptic(config, workdir)
    return "\n\n".join((table, objects, describe(numbers), _what_next(workdir, config)))


def _result(workdir: pathlib.Path, step: int) -> EvaluationResult:
    return read_result(workdir / RESULTS_FOLDER / f"step_{step}" / f"{DATASET}.json")


def _what_next(workdir: pathlib.Path, config: Config) -> str:
    return f"""Look at
  {workdir}/{RESULTS_FOLDER}/{DATASET}.png           image | labels | frozen | tuned
  {workdir}/{PICTURE}                              the same of objects
  {workdir}/diagnosis/score_against_iou.png     what fine-tuning changed
  tensorboard --logdir={workdir}
Name regions of any of the pictures in {config.data.root}/val/images:
  python -m maft_jax.cli.predict --out=predicted --weights={workdir} \\
      --image={config.data.root}/val/images/1000000.png --classes="striped red shape, brick, grass"
Next, with your own photos and CLIP weights:
  python -m maft_jax.main --config=configs/folder.py --workdir=runs/mine \\
      --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt"""
