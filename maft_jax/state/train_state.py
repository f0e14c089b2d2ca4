"""What training changes: the step, the trainable leaves and their moments. Frozen means absent."""

from collections.abc import Mapping, Sequence

import flax.struct
import jax.numpy as jnp
import optax

from maft_jax.models.array_types import Leaf
from maft_jax.runtime import tree_rules


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint must hold; frozen parameters stay in the pretrained tree."""

    step: Leaf
    """[] int32: how many updates have been applied."""
    trainable: dict
    """The tuned leaves of the image tower, a nested subtree of it."""
    opt_state: optax.OptState


def init_train_state(
    visual: Mapping, trainable_rules: Sequence[str], optimizer: optax.GradientTransformation
) -> TrainState:
    """Step 0: the trainable leaves are copies of the pretrained ones.

    Raises:
        ValueError: a rule matches nothing.
    """
    chosen = tree_rules.select(trainable_rules, visual, where="config.optimizer.trainable")
    trainable = tree_rules.map_with_path(lambda _, leaf: jnp.array(leaf, jnp.float32), chosen)
    return state_of(trainable, optimizer)


def state_of(trainable: Mapping, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of these leaves."""
    return TrainState(jnp.zeros((), jnp.int32), dict(trainable), optimizer.init(trainable))


def overlay(pretrained: Mapping, trainable: Mapping) -> dict:
    """The pretrained tree with the trainable leaves in place of its own."""
    leaves = tree_rules.flatten(pretrained)
    leaves.update(tree_rules.flatten(trainable))
    return tree_rules.unflatten(leaves)
