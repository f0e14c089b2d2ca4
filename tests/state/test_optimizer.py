"""AdamW, clipping and schedule against torch.optim, as the official code uses it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from maft_jax.config.sections import OptimizerConfig
from maft_jax.configs.generator_coco import get_config
from maft_jax.convert.generators_official import rules_of
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.text_interaction import TextConfig
from maft_jax.runtime import tree_rules
from maft_jax.state.optimizer import clip_by_global_norm, make_optimizer, make_schedule
from maft_jax.training.generator_architecture import TRAINABLE
from tests.golden_files import golden

SHAPES = {
    "blocks_0/attn/in_proj/kernel": (6, 3, 2, 3),
    "blocks_0/attn/in_proj/bias": (3, 2, 3),
    "blocks_0/ln_1/scale": (6,),
    "blocks_0/ln_1/bias": (6,),
    "ln_post/scale": (6,),
}
DECAYED = {"blocks_0/attn/in_proj/kernel", "blocks_0/attn/in_proj/bias"}


def random_leaves(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def global_norm(leaves: dict) -> float:
    return float(np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in leaves.values())))


@pytest.mark.parametrize("norm", [1e-8, 0.005, 0.0099995, 0.01, 0.010001, 0.02, 3.0])
def test_clipping_is_that_of_torch(norm):
    leaves = random_leaves(0)
    scale = np.float32(norm / global_norm(leaves))
    leaves = {path: leaf * scale for path, leaf in leaves.items()}
    parameters = {path: torch.nn.Parameter(torch.zeros(x.shape)) for path, x in leaves.items()}
    for path, parameter in parameters.items():
        parameter.grad = torch.from_numpy(leaves[path].copy())
    torch.nn.utils.clip_grad_norm_(parameters.values(), 0.01)

    clip = clip_by_global_norm(0.01)
    clipped, _ = clip.update(leaves, clip.init(leaves))
    for path, parameter in parameters.items():
        np.testing.assert_allclose(clipped[path], parameter.grad.numpy(), rtol=2e-6, atol=0)


def test_clipping_differs_from_optax_by_the_1e_6_of_torch():
    leaves = {"x": jnp.array([0.03, 0.04])}
    clip = clip_by_global_norm(0.01)
    ours = clip.update(leaves, clip.init(leaves))[0]["x"]
    np.testing.assert_allclose(jnp.linalg.norm(ours), 0.01 * 0.05 / 0.050001, rtol=1e-6)
    optaxs = optax.clip_by_global_norm(0.01)
    assert not np.allclose(ours, optaxs.update(leaves, optaxs.init(leaves))[0]["x"], rtol=1e-5)


def test_zero_gradient_stays_zero():
    clip = clip_by_global_norm(0.01)
    zeros = {"x": jnp.zeros(3)}
    np.testing.assert_array_equal(clip.update(zeros, clip.init(zeros))[0]["x"], np.zeros(3))


def test_schedule_has_the_official_values():
    schedule = make_schedule(OptimizerConfig(), 1000)
    expected = {0: 1e-5, 1: 9.990999549947989e-6, 500: 5.358867312681466e-6, 999: 1.9952623e-8}
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-4 if step == 999 else 1e-6)
    assert schedule(1000) == 0.0
    constant = make_schedule(OptimizerConfig(learning_rate_power=0.0), 1000)
    np.testing.assert_allclose([constant(0), constant(999)], [1e-5, 1e-5], rtol=1e-6)


def torch_steps(start, gradients, config: OptimizerConfig, num_steps: int):
    parameters = {path: torch.nn.Parameter(torch.from_numpy(x.copy())) for path, x in start.items()}
    groups = [
        {"params": [p for path, p in parameters.items() if path in DECAYED]},
        {"params": [p for path, p in parameters.items() if path not in DECAYED], "weight_decay": 0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, weight_decay=config.weight_decay)
    for step, gradient in enumerate(gradients):
        for group in adamw.param_groups:
            group["lr"] = config.learning_rate * (1 - step / num_steps) ** 0.9
        for path, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient[path].copy())
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)
        adamw.step()
    return {path: parameter.detach().numpy() for path, parameter in parameters.items()}


def test_several_steps_are_those_of_torch_with_two_parameter_groups():
    config, num_steps = OptimizerConfig(learning_rate=1e-2, weight_decay=0.3, clip_norm=5.0), 6
    start = random_leaves(0)
    # norms around the clipping threshold: small ones pass unclipped
    gradients = [
        {path: leaf * np.float32(scale) for path, leaf in random_leaves(seed).items()}
        for seed, scale in enumerate([1.0, 0.1, 2.0, 0.5, 0.01], start=1)
    ]
    norms = [global_norm(gradient) for gradient in gradients]
    assert min(norms) < 5 < max(norms)

    tx = make_optimizer(config, num_steps)
    params = tree_rules.unflatten(start)
    state = tx.init(params)

    @jax.jit
    def update(gradient, state, params):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(tree_rules.unflatten(gradient), state, params)
    expected = torch_steps(start, gradients, config, num_steps)
    for path, leaf in tree_rules.flatten(params).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-6, rtol=0, err_msg=path)


def test_layer_norms_do_not_decay():
    config = OptimizerConfig(learning_rate=0.1, learning_rate_power=0.0, weight_decay=0.5)
    tx = make_optimizer(config, 10)
    params = tree_rules.unflatten(random_leaves(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for path, update in tree_rules.flatten(updates).items():
        leaf = tree_rules.flatten(params)[path]
        expected = -0.1 * 0.5 * leaf if path in DECAYED else np.zeros_like(leaf)
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=path)


def test_without_exceptions_everything_decays():
    tx = make_optimizer(OptimizerConfig(no_weight_decay=()), 10)
    params = {"ln_post": {"scale": jnp.ones(3)}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["ln_post"]["scale"], -1e-9 * np.ones(3), rtol=1e-6)


def test_broken_decay_rule_is_named():
    message = r"config\.optimizer\.no_weight_decay: '\(ln' is not a regular expression"
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(no_weight_decay=("(ln",)), 10)


def test_the_rate_falls_to_a_tenth_at_every_drop():
    schedule = make_schedule(OptimizerConfig(1e-4, "drops", learning_rate_drops=(30, 50)), 100)
    rates = [float(schedule(step)) for step in (0, 29, 30, 49, 50, 99)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6], rtol=1e-6)


@pytest.mark.parametrize(
    "paths", [("backbone/stem_0/kernel", "decoder/kernel"), ("visual/stem_0/kernel", "extra/scale")]
)
def test_what_begins_pretrained_moves_by_its_rate(paths):
    parameters = tree_rules.unflatten({path: jnp.ones((2, 3)) for path in paths})
    moved = []
    for factor in (1.0, 0.1):
        optimizer = make_optimizer(OptimizerConfig(pretrained_rate=factor), 10)
        updates, _ = optimizer.update(parameters, optimizer.init(parameters), parameters)
        moved.append(tree_rules.flatten(updates))
    for path, update in moved[1].items():
        factor = 0.1 if path == paths[0] else 1
        np.testing.assert_allclose(update, factor * moved[0][path], rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_rate": 0.1},
        {"schedule": "cosine", "final_learning_rate": 1e-6},
        {"schedule": "drops", "learning_rate_drops": (3,)},
    ],
)
def test_checkpoints_fit_whatever_the_rates_are(changes):
    parameters = {"visual": {"kernel": jnp.ones((2, 3))}, "extra": {"kernel": jnp.ones(3)}}
    states = (
        make_optimizer(config, 10).init(parameters)
        for config in (OptimizerConfig(), OptimizerConfig(**changes))
    )
    assert len(set(map(jax.tree.structure, states))) == 1


def test_parameter_groups_of_freeseg_are_the_official_ones():
    """Learning rate and weight decay of each of its 380 parameters, by its name."""
    groups = golden("generators/parameter_groups")
    config = get_config("freeseg").optimizer
    rules = rules_of(Mask2FormerConfig(ResNetConfig(stem_widths=(64, 64, 128)), text=TextConfig()))
    rules = {
        re.escape(name).replace(r"\{\}", r"(\d+)"): rule.ours
        for rule in rules
        for name in rule.names
    }
    assert len(groups["parameter_names"]) == 380
    for name, multiplier, decay in zip(
        *(groups[key] for key in ("parameter_names", "lr_multiplier", "weight_decay")), strict=True
    ):
        ((path, match),) = [
            (ours, match)
            for pattern, ours in rules.items()
            if (match := re.fullmatch(pattern, name))
        ]
        path = path.format(*match.groups())
        assert tree_rules.matches_any(TRAINABLE, path), path
        factor = config.pretrained_rate if path.startswith("backbone/") else 1
        assert factor == multiplier, path
        decayed = not tree_rules.matches_any(config.no_weight_decay, path)
        assert decayed * config.weight_decay == decay, path


def test_cosine_falls_to_the_final_rate_by_literal_numbers():
    config = OptimizerConfig(learning_rate=3e-4, schedule="cosine", final_learning_rate=1e-4)
    schedule = make_schedule(config, 100)
    rates = [float(schedule(step)) for step in (0, 25, 50, 100)]
    expected = [3e-4, 2e-4 + 1e-4 * 0.5**0.5, 2e-4, 1e-4]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
