"""The train step of a configuration: what training runs, planning compiles, benchmarks time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from maft_jax.models.encoder import ImageArchitecture
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import sharding, tree_rules
from maft_jax.state import optimizer
from maft_jax.state.train_state import TrainState, init_train_state, state_of
from maft_jax.state.tuned_tree import TunedTree
from maft_jax.training import train_step
from maft_jax.training.clip_objective import ClipObjective
from maft_jax.training.method_objective import MethodObjective
from maft_jax.training.objective import Objective


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """All of a step but its weights, which may be arrays or, to plan with, their shapes."""

    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh
    trainable: tuple[str, ...]
    """Rules over the paths of the parameters."""
    reads_beginnings: bool = True
    """Whether the objective reads trained leaves as they were before the first step, too."""

    def init_state(self, parameters: Mapping) -> TrainState:
        """Step 0 of tuning these, or its shapes under jax.eval_shape."""
        return init_train_state(parameters, self.trainable, self.optimizer)

    def place_state(self, parameters: Mapping) -> TrainState:
        """The same from leaves on the host, on the mesh: each device makes its part of it."""
        rules = self.objective.sharding_rules
        shapes = jax.eval_shape(self.init_state, parameters)
        leaves, chosen = tree_rules.flatten(parameters), tree_rules.flatten(shapes.trainable)
        trained = tree_rules.unflatten({path: np.float32(leaves[path]) for path in chosen})
        make = jax.jit(
            functools.partial(state_of, optimizer=self.optimizer),
            out_shardings=sharding.tree_shardings(shapes, self.mesh, rules),
        )
        return make(sharding.place(trained, self.mesh, rules))

    def frozen(self, parameters: Mapping) -> Mapping:
        """What the step reads beside its state, rounded once, not in every step."""
        if not self.reads_beginnings:
            leaves = tree_rules.flatten(parameters).items()
            trained = functools.partial(tree_rules.matches_any, self.trainable)
            parameters = tree_rules.unflatten(
                {path: leaf for path, leaf in leaves if not trained(path)}
            )
        return self.objective.in_compute_dtype(parameters)

    def jitted(self, state: TrainState, frozen: Mapping) -> Callable:
        """The step, sharded over the mesh; both arguments give shapes alone."""
        return train_step.make_train_step(self.objective, self.optimizer, self.mesh, state, frozen)


def make_step_setup(config: ResolvedConfig, vision: ImageArchitecture, mesh: Mesh) -> StepSetup:
    """The step of these settings for an image tower.

    Raises:
        ValueError: the start layer or the image size does not suit the weights.
    """
    size, loss = config.model.image_size, config.loss
    encoder = make_encoder(config.model, vision, mesh, loss.logit_scale, loss.probabilities)
    tree = tuned_tree(config)
    parts = config.optimizer.accumulation_steps
    rate = config.optimizer.pretrained_rate
    if rate != 1 and not tree.has_modules:
        raise ValueError(
            f"config.optimizer.pretrained_rate={rate}: expected 1 where nothing but the tower is "
            "trained; set config.optimizer.learning_rate"
        )
    if tree.method is None:
        objective = ClipObjective(encoder, loss, (size, size), parts, tree)
    else:
        tree.method.check(encoder)
        objective = MethodObjective(encoder, tree, (size, size), parts)
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps, tree.tower_path)
    return StepSetup(objective, tx, mesh, tree.rules(config.optimizer.trainable))


def tuned_tree(config: ResolvedConfig) -> TunedTree:
    """How the parameters of a run lie."""
    return TunedTree.of(config, config.optimizer.trainable)
