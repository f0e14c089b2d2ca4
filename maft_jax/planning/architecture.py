"""What a plan must know of weights and data, which need not be there: architecture and sizes."""

import pathlib

from jax.sharding import Mesh

from input_pipeline.class_lists import BUILT_IN as CLASS_LISTS
from input_pipeline.class_lists import load_class_list
from input_pipeline.dataset_specs import SPECS
from maft_jax.config import Config
from maft_jax.config.sections import DataConfig
from maft_jax.models.clip import CLIP_SIZES, ClipConfig
from maft_jax.models.encoder import MaskingSpec
from maft_jax.proposals.record_sets import unseen_classes
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.weights import BUILT_IN, RANDOM_PREFIX, is_here, open_weights, size_named_by

FOLDER_CLASSES = 150
"""Assumed of a folder whose list of classes is not there."""


def resolve_config(config: Config, mesh: Mesh) -> tuple[ResolvedConfig, ClipConfig, list[str]]:
    """The configuration as training uses it on `mesh`, the architecture, and what was assumed.

    Raises:
        ValueError: the weights are of an unknown architecture.
    """
    clip, noted, assumption = clip_architecture(config.model.pretrained, **config.model.stated)
    return resolve(config, clip, noted, mesh), clip, [assumption] if assumption else []


def check_trains(task: str) -> None:
    """Refuses a config.task without a train step.

    Raises:
        ValueError: it only evaluates.
    """
    if task == "evaluate":
        raise ValueError(
            f"config.task={task}: there is no train step to plan, since this configuration only "
            "evaluates; plan one that trains, such as --config=configs/coco.py"
        )


def clip_architecture(pretrained: str, **stated) -> tuple[ClipConfig, MaskingSpec | None, str]:
    """Architecture, how the weights note that they were tuned, and what was assumed.

    `stated` is what open_weights is told of weights that are there.

    Raises:
        ValueError: `pretrained` is no file and no name of CLIP_SIZES.
    """
    size = size_named_by(pretrained)
    if is_here(pretrained) and not pretrained.startswith(RANDOM_PREFIX):
        weights = open_weights(pretrained, **stated, needs_text=True)
        return weights.config, weights.masking, ""
    if size is None:
        raise ValueError(
            f"config.model.pretrained={pretrained!r}: no such file, and no architecture of that "
            f"name; expected weights that exist, a file name such as ViT-B-16.pt of "
            f"{list(CLIP_SIZES)}, random:SIZE, or one of {list(BUILT_IN)}"
        )
    assumption = ""
    if not pretrained.startswith(RANDOM_PREFIX):
        assumption = f"{pretrained} is not here: taken for {size}, as its name says"
    return CLIP_SIZES[size], None, assumption


def num_classes(data: DataConfig) -> tuple[int, str]:
    """Classes that training reads text embeddings of, and what was assumed.

    Raises:
        ValueError: the list of classes is corrupt, or "published" of a data set without a split.
    """
    if data.dataset in SPECS:
        spec = SPECS[data.dataset]
        unseen = unseen_classes(
            data, {"dataset": data.dataset, "unseen_classes": spec.unseen_classes}
        )
        return spec.num_classes - len(unseen), ""
    listed = pathlib.Path(data.root, data.classes)
    if data.classes in CLASS_LISTS or listed.is_file():
        source = data.classes if data.classes in CLASS_LISTS else listed
        names = load_class_list(source, data.ignore_labels).names
        return len(names) - len(data.unseen_classes), ""
    return FOLDER_CLASSES, f"{FOLDER_CLASSES} classes, since {listed} is not here"


def names_per_class(data: DataConfig) -> int:
    """Text embeddings of each class: the most names that a class of the list has.

    Raises:
        ValueError: the list of classes is corrupt.
    """
    listed = pathlib.Path(data.root, data.classes)
    if data.dataset in SPECS or not data.synonyms or not listed.is_file():
        return 1
    return 1 + max(map(len, load_class_list(listed, data.ignore_labels).synonyms), default=0)
