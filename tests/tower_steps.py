"""One training step of any tower: run on a mesh, or lowered from shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maft_jax.config.sections import LossConfig, MeshConfig, OptimizerConfig
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import EncoderSettings, ImageArchitecture
from maft_jax.runtime import sharding
from maft_jax.state import optimizer
from maft_jax.state.train_state import init_train_state
from maft_jax.training import train_step
from maft_jax.training.clip_objective import ClipObjective
from tests.tiny_models import tiny_batch


def step_on(vision: ImageArchitecture, mesh, settings: OptimizerConfig):
    """Metrics and trained parameters after one step of random weights on a batch of 8.

    The factor of similarities is 10: TIPS's own, 197, saturates the softmax of random weights, so
    that gradients are rounding.
    """
    masking = dataclasses.replace(vision.default_masking, image_size=64)
    encoder = vision.make_encoder(EncoderSettings(masking, mesh, logit_scale=10.0))
    visual = vision.init(jax.random.key(0))
    tx = optimizer.make_optimizer(settings, 10)
    spec = ClipObjective(encoder, LossConfig(), (64, 64), settings.accumulation_steps)
    state = init_train_state(visual, vision.default_trainable, tx)
    text = jax.random.normal(jax.random.key(7), (5, vision.embed_dim))
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    step = train_step.make_train_step(spec, tx, mesh, state, visual)
    shardings = sharding.tree_shardings((state, visual), mesh, vision.sharding_rules)
    state, visual = jax.device_put((state, visual), shardings)
    state, metrics = step(state, visual, text, tiny_batch(8))
    return jax.tree.map(np.asarray, (metrics, state.trainable))


def lowered_step(vision: ImageArchitecture, image_size: int, teacher: bool):
    """Of one image with 100 proposals."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    visual = jax.eval_shape(lambda: vision.init(jax.random.key(0)))
    masking = dataclasses.replace(vision.default_masking, image_size=image_size)
    encoder = vision.make_encoder(EncoderSettings(masking, mesh))
    spec = ClipObjective(encoder, LossConfig(), (image_size, image_size))
    tx = optimizer.make_optimizer(OptimizerConfig(), 1000)
    state = jax.eval_shape(lambda v: init_train_state(v, vision.default_trainable, tx), visual)

    def shape(*dimensions, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, *dimensions), dtype)

    batch = Batch(
        image=shape(image_size, image_size, 3, dtype=jnp.uint8),
        label_map=shape(image_size, image_size),
        present_classes=shape(24),
        proposals=shape(100, image_size // 4, image_size // 4, dtype=jnp.uint8),
        proposal_valid=shape(100, dtype=bool),
        teacher_probabilities=None if teacher else shape(171, dtype=jnp.float32),
    )
    text = jax.ShapeDtypeStruct((171, vision.embed_dim), jnp.float32)
    step = train_step.make_train_step(spec, tx, mesh, state, visual)
    return step.lower(state, visual, text, batch)
