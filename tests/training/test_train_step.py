"""What the step must be indifferent to, and what it must notice."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import LossConfig, OptimizerConfig
from maft_jax.models.layers import in_compute_dtype
from maft_jax.models.preprocess import clip_input
from maft_jax.runtime import tree_rules
from maft_jax.training import train_step
from maft_jax.training.clip_objective import teacher_probabilities
from tests.tiny_models import (
    CLIP_TRAINABLE,
    NUM_CLASSES,
    tiny_batch,
    tiny_spec,
    tiny_text,
    tiny_visual,
)

OPTIMIZER = OptimizerConfig()


@pytest.fixture(scope="module")
def loss_gradient():
    spec, visual = tiny_spec(), tiny_visual()
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")
    return jax.jit(lambda batch: train_step.gradients(spec, trainable, visual, tiny_text(), batch))


def with_padding(batch, seed):
    """Three more proposals that are not valid; all that `loss_gradient` reads, to compile once."""
    shape = (len(batch.image), 3, *batch.proposals.shape[2:])
    extra = jax.random.bits(jax.random.key(seed), shape, jnp.uint8)
    return batch.replace(
        proposals=jnp.concatenate([batch.proposals, extra], axis=1),
        proposal_valid=jnp.pad(batch.proposal_valid, ((0, 0), (0, 3))),
    )


def test_content_of_padding_changes_nothing_bit_for_bit(loss_gradient):
    batch = tiny_batch(4)
    expected, ours = loss_gradient(with_padding(batch, 1)), loss_gradient(with_padding(batch, 2))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_image_without_classes_adds_only_distillation(loss_gradient):
    batch = with_padding(tiny_batch(4), 1)
    nothing = batch.replace(
        label_map=batch.label_map.at[1].set(-1),
        present_classes=batch.present_classes.at[1].set(-1),
    )
    other_image = nothing.replace(proposals=nothing.proposals.at[1].set(255))
    expected, ours = loss_gradient(nothing), loss_gradient(other_image)
    np.testing.assert_array_equal(ours[1]["mask_aware_loss"], expected[1]["mask_aware_loss"])
    jax.tree.map(np.testing.assert_array_equal, ours[0], expected[0])


def test_batch_without_any_class_has_zero_loss_and_gradient(loss_gradient):
    batch = with_padding(tiny_batch(4), 1)
    nothing = batch.replace(
        label_map=jnp.full_like(batch.label_map, -1),
        present_classes=jnp.full_like(batch.present_classes, -1),
    )
    gradient, metrics = loss_gradient(nothing)
    assert metrics["mask_aware_loss"] == 0.0
    assert all(jnp.abs(leaf).max() < 1e-9 for leaf in jax.tree.leaves(gradient))


def test_empty_proposals_are_counted_among_the_valid(loss_gradient):
    batch = with_padding(tiny_batch(4), 1)
    proposals = batch.proposals.at[:, 6:].set(0)  # padding: does not count
    proposals = proposals.at[:, :6].set(255).at[0, :3].set(0)
    metrics = loss_gradient(batch.replace(proposals=proposals))[1]
    np.testing.assert_allclose(metrics["empty_proposals"], 3 / 24)


def test_nan_image_is_blamed(loss_gradient):
    batch = with_padding(tiny_batch(4), 1)
    images = jnp.zeros((4, 64, 64, 3)).at[2, 5, 5, 0].set(jnp.nan)
    metrics = loss_gradient(batch.replace(image=images))[1]
    np.testing.assert_array_equal(metrics["example_finite"], [True, True, False, True])


def test_frozen_leaves_have_no_gradient_moment_or_place_in_the_state(loss_gradient):
    gradient, _ = loss_gradient(with_padding(tiny_batch(4), 1))
    paths = set(tree_rules.flatten(gradient))
    blocks = {f"blocks_{i}" for i in range(3)}
    assert {path.split("/")[0] for path in paths} == blocks | {"ln_post"}
    assert not any("mlp" in path or "embedding" in path for path in paths)
    assert len(paths) == 3 * 8 + 2


@pytest.mark.slow
def test_without_distillation_there_is_no_teacher_pass():
    visual, batch = tiny_visual(), tiny_batch(2)
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")

    def flops(weight):
        spec = tiny_spec(LossConfig(distillation_weight=weight))
        run = jax.jit(lambda t: train_step.gradients(spec, t, visual, tiny_text(), batch))
        return run.lower(trainable).cost_analysis()["flops"]

    assert flops(0.0) < 0.75 * flops(0.1)


@pytest.mark.slow
def test_frozen_weights_rounded_once_change_no_number():
    """Not in every step: half the bytes, and the same bits in the products."""
    spec, visual, batch = tiny_spec(dtype=jnp.bfloat16), tiny_visual(), tiny_batch(2)
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")
    rounded = in_compute_dtype(visual, jnp.bfloat16)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(rounded)}
    assert dtypes == {"bfloat16", "float32"}
    run = jax.jit(lambda frozen: train_step.gradients(spec, trainable, frozen, tiny_text(), batch))
    jax.tree.map(np.testing.assert_array_equal, run(rounded), run(visual))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_cached_teacher_changes_no_number(accumulation_steps):
    spec = tiny_spec(LossConfig(logit_scale=10.0), accumulation_steps)
    visual, batch = tiny_visual(), tiny_batch(4)
    tuned = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), visual
    )
    weights = (
        tree_rules.select(CLIP_TRAINABLE, tuned, where="test"),
        visual,
        tiny_text(),
    )
    run = jax.jit(lambda weights, batch: train_step.gradients(spec, *weights, batch))
    answer = jax.jit(functools.partial(teacher_probabilities, spec.encoder))
    teacher = answer(visual, tiny_text(), clip_input(batch.image, spec.image_size))
    expected, metrics = run(weights, batch)
    ours, ours_metrics = run(weights, batch.replace(teacher_probabilities=teacher))
    assert metrics["distillation_loss"] > 1e-4, "large enough to compare"
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), ours, expected
    )
    for name in ("loss", "distillation_loss", "mask_aware_loss"):
        np.testing.assert_allclose(ours_metrics[name], metrics[name], rtol=0, atol=1e-6)
    other = batch.replace(teacher_probabilities=jnp.full((4, NUM_CLASSES), 1 / NUM_CLASSES))
    assert abs(run(weights, other)[1]["distillation_loss"] - metrics["distillation_loss"]) > 1e-4


def test_with_a_cached_teacher_there_is_no_teacher_pass():
    spec, visual, batch = tiny_spec(), tiny_visual(), tiny_batch(2)
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")

    def flops_of(function, *arguments):
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    def gradients(trainable, batch):
        return train_step.gradients(spec, trainable, visual, tiny_text(), batch)

    cached = batch.replace(teacher_probabilities=jnp.ones((2, NUM_CLASSES)))
    images = clip_input(batch.image, spec.image_size)
    teacher = flops_of(
        lambda x: teacher_probabilities(spec.encoder, visual, tiny_text(), x), images
    )
    saved = flops_of(gradients, trainable, batch) - flops_of(gradients, trainable, cached)
    np.testing.assert_allclose(saved, teacher, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "l1", "l2"])
def test_other_losses_train(kind):
    spec, visual, batch = tiny_spec(LossConfig(mask_aware=kind)), tiny_visual(), tiny_batch(2)
    trainable = tree_rules.select(CLIP_TRAINABLE, visual, where="test")
    run = jax.jit(lambda t: train_step.gradients(spec, t, visual, tiny_text(), batch))
    gradient, metrics = run(trainable)
    assert np.isfinite(metrics["loss"]) and metrics["mask_aware_loss"] > 0
    assert any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_weights_of_the_losses_scale_their_parts():
    visual, batch = tiny_visual(), tiny_batch(2)
    tuned = jax.tree.map(lambda leaf: 1.1 * leaf, visual)
    trainable = tree_rules.select(CLIP_TRAINABLE, tuned, where="test")

    def gradients(mask_aware, distillation):
        loss = LossConfig(mask_aware_weight=mask_aware, distillation_weight=distillation)
        run = jax.jit(
            lambda t: train_step.gradients(tiny_spec(loss), t, visual, tiny_text(), batch)
        )
        gradient, metrics = run(trainable)
        return jax.flatten_util.ravel_pytree(gradient)[0], metrics

    alone, of_mask_aware = gradients(1.0, 0.0)
    other, of_distillation = gradients(0.0, 1.0)
    both, together = gradients(2.0, 3.0)
    assert of_distillation["mask_aware_loss"] == 0 and of_distillation["distillation_loss"] > 0
    assert of_mask_aware["mask_aware_loss"] > 0 and "distillation_loss" not in of_mask_aware
    np.testing.assert_allclose(both, 2 * alone + 3 * other, atol=1e-5 * np.abs(both).max())
    expected = 2 * of_mask_aware["loss"] + 3 * of_distillation["loss"]
    np.testing.assert_allclose(together["loss"], expected, rtol=1e-5)


def test_what_sums_are_divided_by_is_float32_or_a_plain_number():
    counts = tiny_spec().counts(tiny_batch(2, num_proposals=3))
    assert [getattr(count, "dtype", type(count)) for count in counts] == [
        jnp.float32,
        int,
        jnp.float32,
    ]
    assert (counts.images, float(counts.proposals)) == (2, 6.0)
