"""Which parameters are tuned: the published counts, in shapes alone, without their memory."""

import functools
import math

import jax
import numpy as np
import pytest

from maft_jax.config.sections import OptimizerConfig
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.runtime import tree_rules
from maft_jax.state.optimizer import make_optimizer
from maft_jax.state.train_state import init_train_state, overlay
from tests.tiny_models import CLIP_TRAINABLE, tiny_visual

RULES = CLIP_TRAINABLE


@functools.cache
def shapes(size: str) -> dict:
    return jax.eval_shape(lambda: random_parameters(CLIP_SIZES[size]))


@functools.cache
def abstract_state(size: str):
    tx = make_optimizer(OptimizerConfig(), 1000)
    return jax.eval_shape(
        lambda visual: init_train_state(visual, RULES, tx), shapes(size)["visual"]
    )


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"),
    [("ViT-B-16", 98, 28_386_816), ("ViT-B-32", 98, 28_386_816), ("ViT-L-14", 194, 100_861_952)],
)
def test_tuned_parameters_are_as_many_as_published(size, tensors, parameters):
    trainable = abstract_state(size).trainable
    assert len(jax.tree.leaves(trainable)) == tensors
    assert count(trainable) == parameters


@pytest.mark.parametrize(
    ("size", "parameters"), [("ViT-B-16", 149_620_737), ("ViT-L-14", 427_616_513)]
)
def test_whole_clip_has_the_published_number_of_parameters(size, parameters):
    assert count(shapes(size)) == parameters


def test_tuned_are_attention_and_layer_norms_of_all_blocks_and_ln_post():
    parts = ("attn/in_proj/kernel", "attn/in_proj/bias", "attn/out_proj/kernel")
    parts += ("attn/out_proj/bias", "ln_1/scale", "ln_1/bias", "ln_2/scale", "ln_2/bias")
    expected = {f"blocks_{i}/{part}" for i in range(12) for part in parts}
    expected |= {"ln_post/scale", "ln_post/bias"}
    assert set(tree_rules.flatten(abstract_state("ViT-B-16").trainable)) == expected


def test_moments_exist_for_exactly_the_tuned_leaves():
    state = abstract_state("ViT-B-16")
    paths = tree_rules.flatten(state.trainable)
    moments = [
        leaf
        for leaf in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(leaf, "mu")
    ]
    assert len(moments) == 1
    for moment in (moments[0].mu, moments[0].nu):
        shapes_of_moments = {path: x.shape for path, x in tree_rules.flatten(moment).items()}
        assert shapes_of_moments == {path: x.shape for path, x in paths.items()}
    # besides the moments only two step counters: Adam's and the schedule's
    assert count(state.opt_state) == 2 * 28_386_816 + 2
    assert state.step.shape == () and state.step.dtype == np.int32


@pytest.mark.parametrize("rules", [(r"/attn/", r"/ln_3/"), (r"^ln_pos/",), ("mlp/c_fc/weight",)])
def test_rule_that_matches_nothing_is_an_error(rules):
    visual, tx = shapes("tiny")["visual"], make_optimizer(OptimizerConfig(), 10)
    message = rf"config\.optimizer\.trainable: the rule '{rules[-1]}' matches no".replace(
        "^", r"\^"
    )
    with pytest.raises(ValueError, match=message):
        init_train_state(visual, rules, tx)


def test_state_starts_with_copies_of_the_pretrained_leaves():
    visual = tiny_visual()
    state = init_train_state(visual, RULES, make_optimizer(OptimizerConfig(), 10))
    pretrained = tree_rules.flatten(visual)
    for path, leaf in tree_rules.flatten(state.trainable).items():
        np.testing.assert_array_equal(leaf, pretrained[path])
        assert leaf.unsafe_buffer_pointer() != pretrained[path].unsafe_buffer_pointer(), path
    assert state.step == 0


def test_overlay_replaces_the_tuned_leaves_and_no_other():
    visual = {"a": {"x": 1, "y": 2}, "b": 3}
    assert overlay(visual, {"a": {"y": 20}}) == {"a": {"x": 1, "y": 20}, "b": 3}
    assert overlay(visual, {}) == visual
    assert visual == {"a": {"x": 1, "y": 2}, "b": 3}
    assert list(tree_rules.flatten(overlay(visual, {"a": {"x": 0}}))) == ["a/x", "a/y", "b"]
