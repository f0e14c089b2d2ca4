"""The step that trains a generator, for a plan."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.convert.generators import path_of
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.planning.architecture import clip_architecture, num_classes
from maft_jax.planning.compiled_step import LoweredStep
from maft_jax.planning.planned_step import CLASSES_PER_IMAGE, PlannedStep
from maft_jax.planning.products import product_flops
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.training.generator_architecture import make_architecture
from maft_jax.training.generator_task import (
    make_generator_setup,
    open_weights_like,
    resolve_generator,
)
from maft_jax.training.training_data import batch_shapes

_PASSES = 3
"""Forward, and gradients of what products read: of their inputs and of their weights."""


def plan_generator_step(config: Config, mesh: Mesh) -> PlannedStep:
    """Of config.task=train_generator.

    Raises:
        ValueError: weights that are there do not suit the configuration, or CLIP is of an unknown
            architecture, or the classes cannot be told.
    """
    config = resolve_generator(config, mesh)
    classes, assumed = num_classes(config.data)
    assumptions = [assumed] if assumed else []
    architecture = _architecture(config, classes, assumptions)
    size = config.data.crop_size
    return PlannedStep(
        config,
        functools.partial(
            lower_generator_step, architecture=architecture, mesh=mesh, num_classes=classes
        ),
        architecture.describe(),
        size,
        training_flops(architecture, size, classes),
        assumptions,
    )


def _architecture(config: Config, classes: int, assumptions: list[str]) -> Mask2FormerConfig:
    """As training would make it; adds what is assumed of weights that are not there."""
    settings, text_width = config.generator, None
    if settings.classes == "text":
        clip, _, assumed = clip_architecture(config.model.pretrained, **config.model.stated)
        text_width = clip.text.embed_dim
        assumptions += [assumed] if assumed else []
    own = {"data": classes, "agnostic": 1, "text": None}[settings.classes]
    architecture = make_architecture(settings, own, text_width)
    if settings.weights and path_of(settings.weights).exists():
        _, architecture = open_weights_like(settings.weights, architecture)
    elif settings.weights:
        assumptions.append(f"{settings.weights} is not here: sizes are those of config.generator")
    return architecture


def training_flops(architecture: Mask2FormerConfig, size: int, num_classes: int) -> int:
    """Of the network's products for one image of size x size, without matching and losses."""
    network = architecture.make_module()
    parameters = jax.eval_shape(architecture.init, jax.random.key(0))
    forward = functools.partial(network.apply, every_layer=True)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    text = _text(architecture, num_classes)
    return _PASSES * product_flops(forward, {"params": parameters}, image, text)


def lower_generator_step(
    config: ResolvedConfig, architecture: Mask2FormerConfig, mesh: Mesh, num_classes: int
) -> LoweredStep:
    """The very step that training runs, of `make_generator_setup`."""
    setup = make_generator_setup(config, architecture, mesh)
    parameters = jax.eval_shape(architecture.init, jax.random.key(0))
    state = jax.eval_shape(setup.init_state, parameters)
    frozen = jax.eval_shape(setup.frozen, parameters)
    batch = batch_shapes(config, CLASSES_PER_IMAGE, num_classes, with_positions=True)
    text = _text(architecture, num_classes)
    return LoweredStep(
        setup.jitted(state, frozen).lower(state, frozen, text, batch),
        setup.objective.sharding_rules,
        state,
        frozen,
        "weights that are not trained",
        text,
        batch,
    )


def _text(architecture: Mask2FormerConfig, num_classes: int) -> jax.ShapeDtypeStruct | None:
    if architecture.text is None:
        return None
    return jax.ShapeDtypeStruct((num_classes, architecture.text.width), np.float32)
