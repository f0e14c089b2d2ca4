"""AdamW as the official code runs it: decay of the rate, weight decay by rules, torch's clipping.

It sees trainable leaves only, so clipping and moments of frozen ones cannot exist.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from maft_jax.config.sections import OptimizerConfig
from maft_jax.runtime import tree_rules
from maft_jax.state.tuned_tree import VISUAL

_PRETRAINED_ROOTS = (VISUAL, "backbone")
"""Of trees that have other roots, too: a method's with modules, and a generator's."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The rate of a 0-based step; MAFT's is learning_rate * (1 - step / num_steps) ** power."""
    if config.schedule == "drops":
        tenths = dict.fromkeys(config.learning_rate_drops, 0.1)
        return optax.piecewise_constant_schedule(config.learning_rate, tenths)
    if config.schedule == "cosine":
        falling, final = optax.cosine_decay_schedule(1.0, num_steps), config.final_learning_rate
        return lambda step: final + (config.learning_rate - final) * falling(step)
    return optax.polynomial_schedule(
        init_value=config.learning_rate,
        end_value=config.final_learning_rate,
        power=config.learning_rate_power,
        transition_steps=num_steps,
    )


def make_optimizer(
    config: OptimizerConfig, num_steps: int, tower_path: Callable[[str], str] = str
) -> optax.GradientTransformation:
    """Clipping, Adam moments, decoupled weight decay, learning rate, in this order.

    Rules may mean the paths of the tree that is trained, or what `tower_path` makes of these.
    """
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask=_decays(config, tower_path)),
        _scale_by_rates(make_schedule(config, num_steps), config.pretrained_rate),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """torch.nn.utils.clip_grad_norm_: scales by max_norm / (norm + 1e-6) if that is below 1.

    optax's own clipping has no 1e-6, which shows at the official norm of 0.01.
    """

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda gradient: gradient * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_by_rates(schedule: optax.Schedule, pretrained: float) -> optax.GradientTransformation:
    """Scales by the learning rate, and by `pretrained` below the root that begins pretrained.

    The state is that of the rate alone, so that a run may go on with another `pretrained`.
    """
    by_rate = optax.scale_by_learning_rate(schedule)
    if pretrained == 1:
        return by_rate

    def scaled(path: str, update):
        return pretrained * update if path.split("/")[0] in _PRETRAINED_ROOTS else update

    def update(updates, state, params=None):
        updates, state = by_rate.update(updates, state, params)
        return tree_rules.map_with_path(scaled, updates), state

    return optax.GradientTransformation(by_rate.init, update)


def _decays(config: OptimizerConfig, tower_path: Callable[[str], str]):
    rules = config.no_weight_decay
    for rule in rules:
        tree_rules.compiled(rule, "config.optimizer.no_weight_decay")

    def decays(path: str, _) -> bool:
        return not any(tree_rules.matches_any(rules, name) for name in (path, tower_path(path)))

    return lambda params: tree_rules.map_with_path(decays, params)
