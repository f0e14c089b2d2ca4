"""One training step: gradients of an objective for the trainable leaves, AdamW, shardings."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array

from maft_jax.models.array_types import Batch
from maft_jax.runtime.sharding import batch_sharding, replicated, tree_shardings
from maft_jax.state.train_state import TrainState
from maft_jax.training.objective import Metrics, Objective


def gradients(
    objective: Objective, trainable: Mapping, pretrained: Mapping, context: Any, batch: Batch
) -> tuple[Mapping, Metrics]:
    """Gradients of the batch's loss with respect to `trainable`, and the metrics.

    With accumulation_steps > 1 the batch is split into strided parts, so that every part is
    spread over all devices; gradients and losses of the parts add up to those of the batch.
    """
    counts = objective.counts(batch)

    def gradients_of(part):
        value_and_grad = jax.value_and_grad(objective.loss_and_metrics, has_aux=True)
        (_, metrics), gradient = value_and_grad(trainable, pretrained, context, part, counts)
        return gradient, metrics

    if objective.accumulation_steps == 1:
        gradient, metrics = gradients_of(batch)
    else:
        gradient, metrics = _accumulated(gradients_of, batch, objective.accumulation_steps)
    terms = metrics.pop("terms")
    metrics |= {f"{name}_loss": value for name, value in terms.items()}
    metrics["loss"] = sum(terms.values())
    return gradient, metrics


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    pretrained: Mapping,
    context: Any,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """One optimiser step; `grad_norm` is the norm before clipping, losses are weighted."""
    gradient, metrics = gradients(objective, state.trainable, pretrained, context, batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    return TrainState(state.step + 1, trainable, opt_state), metrics


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    pretrained: Mapping,
) -> Callable[[TrainState, Mapping, Array, Batch], tuple[TrainState, Metrics]]:
    """The step, jitted with its shardings; `state` (donated) and `pretrained` give the shapes."""

    def step(state, pretrained, context, batch):
        return train_step(objective, optimizer, state, pretrained, context, batch)

    rules = objective.sharding_rules
    state_shardings = tree_shardings(state, mesh, rules)
    return jax.jit(
        step,
        in_shardings=(
            state_shardings,
            tree_shardings(pretrained, mesh, rules),
            replicated(mesh),
            batch_sharding(mesh),
        ),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _accumulated(gradients_of, batch, parts):
    def split(x):
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def add_part(total, part):
        gradient, metrics = gradients_of(part)
        finite = metrics.pop("example_finite")
        return jax.tree.map(jnp.add, total, (gradient, metrics)), finite

    stacked = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradients_of, jax.tree.map(lambda x: x[0], stacked))
    shapes[1].pop("example_finite")
    zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    (gradient, metrics), finite = lax.scan(add_part, zero, stacked)
    return gradient, metrics | {"example_finite": jnp.moveaxis(finite, 0, 1).reshape(-1)}
