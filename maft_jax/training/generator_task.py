"""The task of training a generator of proposals on labels."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.records.record_shards import read_dataset_file
from input_pipeline.records.record_source import RecordSource
from maft_jax.config import Config
from maft_jax.convert.formats import why_not
from maft_jax.convert.generator_backbones import read_backbone
from maft_jax.convert.generator_files import WEIGHTS, preparation_as_written, write_generator
from maft_jax.convert.generators import OpenedGenerator, open_generator
from maft_jax.losses.mask_criteria import Criterion, DenseCriterion, PointCriterion
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder_setup import compute_dtype, platform_of
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.models.generators.initialisation import initial_parameters
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.text_classifier import cached_class_embeddings, text_tower_identity
from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.proposals.mask2former_family import FamilyNetwork, images_per_device
from maft_jax.proposals.precompute_job import cache_dir, job_from_config, records_folder
from maft_jax.proposals.record_sets import unseen_classes
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime.mesh_axes import DATA
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state import optimizer
from maft_jax.state.train_state import overlay
from maft_jax.training.generator_architecture import TRAINABLE, make_architecture
from maft_jax.training.generator_objective import GeneratorObjective
from maft_jax.training.step_setup import StepSetup
from maft_jax.training.task import PeriodicEvaluation
from maft_jax.weights import open_weights

FOLDER = "generator"
"""Of the trained generator, in the workdir."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratorTask:
    """A Task: everything but the constants of a ResNet's norms is trained."""

    config: ResolvedConfig
    architecture: Mask2FormerConfig
    parameters: Mapping
    mesh: Mesh
    class_names: Sequence[str]
    """Of its own; none where it reads them."""
    clip: tuple[ClipConfig, Mapping] | None = None
    """The CLIP whose text tower reads class names, where the generator reads them."""
    weights_file: str = f"{FOLDER}/{WEIGHTS}"
    reads_positions: bool = True

    @functools.cached_property
    def setup(self) -> StepSetup:
        return make_generator_setup(self.config, self.architecture, self.mesh)

    def num_bytes(self) -> int:
        clip = self.clip[1] if self.clip else {}
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.parameters, clip)))

    def per_example(self, source: RecordSource) -> dict[str, np.ndarray]:
        return {}

    def context(self, source: RecordSource) -> np.ndarray | None:
        return self._text(source.class_names)

    def make_evaluation(self) -> PeriodicEvaluation | None:
        if not self.config.evaluation.has_data_sets:
            return None
        from maft_jax.evaluators.generator_recall import (
            GeneratorEvaluation,  # not needed for training alone
        )

        queries = self.architecture.decoder.queries
        return GeneratorEvaluation(
            self.config, self.parameters, self._preparation, self._make_generator, queries
        )

    def identity(self, source: RecordSource) -> dict[str, Any]:
        identity = {
            "pretrained": fingerprint(self.parameters),
            "architecture": repr(self.architecture),
            "objective": repr((self.setup.objective.criterion, self.setup.objective.agnostic)),
        }
        if self.clip:
            config, towers = self.clip
            identity["text_tower"] = text_tower_identity(config.text, towers["text"])
        return identity

    def write(self, path: epath.Path, trainable: Mapping) -> str | None:
        folder = pathlib.Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        trained = overlay(self.parameters, trainable)
        clip = self.clip[1] if self.clip else None
        write_generator(
            folder, self.architecture, trained, self._preparation, self.class_names, clip
        )
        return None

    @property
    def _preparation(self) -> ImagePreparation:
        evaluation = self.config.evaluation
        return preparation_as_written(
            self.architecture, evaluation.short_side, evaluation.max_long_side
        )

    def _make_generator(self, parameters: Mapping, class_names: Sequence[str]) -> DeviceGenerator:
        return DeviceGenerator(
            name=FOLDER,
            fingerprint="",
            network=FamilyNetwork(self.architecture),
            prepare=self._preparation.prepare,
            load=lambda: {"network": parameters, "text": self._text(class_names)},
            divisor=self._preparation.divisor,
            align_corners=self._preparation.align_corners,
            images_per_device=images_per_device(),
        )

    def _text(self, class_names: Sequence[str]) -> np.ndarray | None:
        if self.clip is None:
            return None
        config, towers = self.clip
        data = self.config.data
        return cached_class_embeddings(
            config.text, towers["text"], class_names, data.templates, cache_dir(data)
        )


def open_generator_task(config: Config, mesh: Mesh) -> GeneratorTask:
    """The task for config.generator: weights to go on from, or random ones.

    Raises:
        ValueError: weights are missing or corrupt, or do not suit the configuration, or a rate is
            given for a backbone that begins pretrained and none does.
    """
    config, settings = resolve_generator(config, mesh), config.generator
    _check_rate_of_pretrained(config)
    clip, names = None, ("object",)
    if settings.classes == "text":
        clip, names = _open_clip(config), ()
    elif settings.classes == "data":
        names = _training_classes(config)
    text_width = clip[0].text.embed_dim if clip else None
    architecture = make_architecture(settings, len(names) or None, text_width)
    if settings.weights:
        opened, architecture = open_weights_like(settings.weights, architecture)
        parameters = _parameters(opened, architecture, config.seed)
    else:
        parameters = initial_parameters(architecture, config.seed)
    if settings.backbone_weights:
        backbone = read_backbone(settings.backbone_weights, architecture.backbone)
        parameters = parameters | {"backbone": backbone}
    logger.info("training %s", architecture.describe())
    return GeneratorTask(config, architecture, parameters, mesh, names, clip)


def make_generator_setup(
    config: ResolvedConfig, architecture: Mask2FormerConfig, mesh: Mesh
) -> StepSetup:
    """The step of these settings for a generator; needs neither its weights nor data.

    Raises:
        ValueError: there is no stochastic depth in this backbone.
    """
    settings = config.generator
    if settings.drop_path and not isinstance(architecture.backbone, SwinConfig):
        raise ValueError(
            f"config.generator.drop_path={settings.drop_path}: stochastic depth of a Swin, and the "
            f"backbone is a {architecture.backbone.describe()}; set it to 0"
        )
    criterion: Criterion = DenseCriterion()
    if settings.criterion == "points":
        criterion = PointCriterion(num_points=settings.num_points)
    objective = GeneratorObjective(
        architecture,
        criterion,
        mesh,
        config.model.compute_dtype,
        config.seed,
        settings.classes == "agnostic",
        config.optimizer.accumulation_steps,
        settings.drop_path,
    )
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps)
    return StepSetup(objective, tx, mesh, config.optimizer.trainable, reads_beginnings=False)


def resolve_generator(config: Config, mesh: Mesh) -> ResolvedConfig:
    """With the dtype, the trainable rules and the mesh used; nothing else is asked for."""
    dtype = compute_dtype(config.model.compute_dtype, platform_of(mesh)).name
    trainable = config.optimizer.trainable or TRAINABLE
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return ResolvedConfig(
        **fields
        | {
            "model": dataclasses.replace(config.model, compute_dtype=dtype),
            "optimizer": dataclasses.replace(config.optimizer, trainable=trainable),
            "mesh": dataclasses.replace(config.mesh, data=mesh.shape[DATA]),
        }
    )


def _check_rate_of_pretrained(config: Config) -> None:
    """Planning needs no weights, so that only a run asks for them."""
    rate, settings = config.optimizer.pretrained_rate, config.generator
    if rate == 1 or settings.weights or settings.backbone_weights:
        return
    raise ValueError(
        f"config.optimizer.pretrained_rate={rate}: the learning rate of a backbone that begins "
        "pretrained, and this one begins at random; expected weights "
        "(--config.generator.backbone_weights=resnet50.pth, ImageNet's for a ResNet, or a whole "
        "generator's, --config.generator.weights), or, to train from nothing, "
        "--config.optimizer.pretrained_rate=1"
    )


def _open_clip(config: Config) -> tuple[ClipConfig, Mapping]:
    weights = open_weights(config.model.pretrained, **config.model.stated, needs_text=True)
    if reason := why_not("openai", weights.config):
        raise ValueError(
            f"config.model.pretrained={config.model.pretrained}: expected a CLIP of OpenAI's "
            f"layout, which goes into FreeSeg's checkpoints; that {reason}"
        )
    return weights.config, weights.parameters()


def _training_classes(config: Config) -> tuple[str, ...]:
    """Those whose labels training sees."""
    if config.data.records:
        description = read_dataset_file(records_folder(config))
    else:
        description = job_from_config(config).description
    unseen = unseen_classes(config.data, description)
    return tuple(name for name in description["class_names"] if name not in unseen)


def open_weights_like(
    path: str, wanted: Mask2FormerConfig
) -> tuple[OpenedGenerator, Mask2FormerConfig]:
    """Weights of a generator to go on from, and their own sizes with the classes of `wanted`.

    Raises:
        ValueError: they are missing or corrupt, or read class names where `wanted` does not.
    """
    logger.info("reading %s", path)
    opened = open_generator(path)
    architecture = opened.config
    known = isinstance(architecture, Mask2FormerConfig)
    if not known or _text_width(architecture) != _text_width(wanted):
        raise ValueError(
            f"config.generator.weights={path}: {architecture.describe()}; expected weights of "
            f"{'Mask2Former' if wanted.text is None else 'FreeSeg for this CLIP'}, which "
            "config.generator.classes says"
        )
    return opened, dataclasses.replace(architecture, num_classes=wanted.num_classes)


def _parameters(opened: OpenedGenerator, architecture: Mask2FormerConfig, seed: int) -> Mapping:
    """A linear head of other classes is drawn anew."""
    if architecture == opened.config:
        return opened.parameters()
    logger.info(
        "its weights have %d classes, %d are trained: their head is drawn anew",
        opened.config.num_classes,
        architecture.num_classes,
    )
    head = initial_parameters(architecture, seed)["class_embed"]
    return opened.parameters() | {"class_embed": head}


def _text_width(config: Mask2FormerConfig) -> int | None:
    """Of the rows of class names that it reads; its other sizes are each generator's own."""
    return config.text and config.text.width
