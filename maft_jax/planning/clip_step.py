"""The step that trains CLIP, for a plan."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.planning.architecture import names_per_class, num_classes, resolve_config
from maft_jax.planning.compiled_step import LoweredStep
from maft_jax.planning.planned_step import CLASSES_PER_IMAGE, PlannedStep
from maft_jax.training.step_setup import make_step_setup, tuned_tree
from maft_jax.training.training_data import batch_shapes


def plan_clip_step(config: Config, mesh: Mesh) -> PlannedStep:
    """Of config.task=train.

    Raises:
        ValueError: the weights are of an unknown architecture, or the classes cannot be told.
    """
    config, clip, assumptions = resolve_config(config, mesh)
    classes, assumed = num_classes(config.data)
    assumptions += [assumed] if assumed else []
    if config.method != "maft":
        assumptions.append(f"arithmetic by formula is that of maft, not of {config.method}")
    proposals, cached = config.proposals.num_proposals, config.loss.cached_teacher
    return PlannedStep(
        config,
        functools.partial(
            lower_step,
            clip=clip,
            mesh=mesh,
            num_classes=classes,
            classes_per_image=CLASSES_PER_IMAGE,
            names_per_class=names_per_class(config.data),
        ),
        clip.vision.describe(),
        config.model.image_size,
        clip.vision.step_flops(config.masking, proposals, teacher=not cached),
        assumptions,
    )


def lower_step(
    config: Config,
    clip: ClipConfig,
    mesh: Mesh,
    *,
    num_classes: int,
    classes_per_image: int,
    names_per_class: int = 1,
) -> LoweredStep:
    """The very step that training runs: function, shardings and donation of `make_step_setup`.

    Args:
        config: with start layer and image size resolved, and a batch that suits the mesh.

    Raises:
        ValueError: the configuration does not suit the architecture.
    """
    visual = jax.eval_shape(lambda: random_parameters(clip)["visual"])
    setup = make_step_setup(config, clip.vision, mesh)
    begun = jax.eval_shape(lambda: tuned_tree(config).begin(clip.vision, visual))
    state = jax.eval_shape(setup.init_state, begun)
    frozen = jax.eval_shape(setup.frozen, begun)
    batch = batch_shapes(config, classes_per_image, num_classes)
    rows = (num_classes,) if names_per_class == 1 else (num_classes, names_per_class)
    text = jax.ShapeDtypeStruct((*rows, clip.vision.embed_dim), np.float32)
    return LoweredStep(
        setup.jitted(state, frozen).lower(state, frozen, text, batch),
        clip.vision.sharding_rules,
        state,
        frozen,
        "pretrained tower (frozen, the teacher)",
        text,
        batch,
    )
