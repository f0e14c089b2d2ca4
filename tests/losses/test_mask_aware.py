"""Soft IoU and the mask-aware loss: golden numbers, literal cases, torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.losses import mask_aware
from maft_jax.losses.mask_aware import (
    class_masks,
    count_terms,
    mask_aware_terms,
    normalise_over_proposals,
    soft_iou,
)
from maft_jax.models.resize import resize
from tests.golden_files import golden
from tests.runs import small_config


def golden_masks():
    """Proposals [1, 100, h, w] at the padded size, and ground-truth masks [1, 3, h, w]."""
    arrays = golden("pipeline_ops")
    size = tuple(int(side) for side in arrays["padded_size"])
    logits = jax.device_put(arrays["mask_logits_stride4_f16"].astype(np.float32))
    proposals = jax.nn.sigmoid(resize(logits[None], size, axes=(2, 3), align_corners=True))
    truth = np.unpackbits(arrays["gt_masks"], axis=-1)[..., : size[1]].astype(np.float32)
    return proposals, jax.device_put(truth)[None]


def test_soft_iou_matches_the_official_one():
    iou = soft_iou(*golden_masks())
    expected = golden("pipeline_ops")["soft_iou"]
    np.testing.assert_allclose(iou[0], expected, atol=1e-5, rtol=0)


def test_normalisation_matches_the_official_one():
    arrays = golden("pipeline_ops")
    ours = normalise_over_proposals(
        jax.device_put(arrays["soft_iou"])[None], jnp.ones((1, 100), bool)
    )
    np.testing.assert_allclose(ours[0], arrays["soft_iou_normalised"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(21, 30), (20, 29), (1, 1)])
def test_soft_iou_of_coarse_proposals_is_that_of_upsampled_ones(size):
    rng = np.random.default_rng(0)
    proposals = jax.device_put(rng.uniform(size=(2, 5, *size)).astype(np.float32))
    truth = jax.device_put(rng.integers(0, 2, (2, 3, 81, 117)).astype(np.float32))
    upsampled = resize(proposals, (81, 117), axes=(2, 3), align_corners=True)
    expected = soft_iou(upsampled, truth)
    np.testing.assert_allclose(soft_iou(proposals, truth), expected, atol=1e-5, rtol=0)


def test_soft_iou_by_literal_numbers():
    proposal = jnp.array([[1.0, 0.5], [0.0, 0.0]])[None, None]
    truth = jnp.array([[1.0, 1.0], [0.0, 1.0]])[None, None]
    # intersection 1.5, areas 1.5 and 3
    np.testing.assert_allclose(soft_iou(proposal, truth), [[[0.5]]], rtol=1e-6)


def test_class_masks_skip_padding_and_unlabelled_pixels():
    label_map = jnp.array([[[0, 2], [-1, 2]]])
    masks = class_masks(label_map, jnp.array([[0, 2, -1]]))
    expected = [[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]]
    np.testing.assert_array_equal(masks[0], expected)


def test_normalisation_leaves_padding_out():
    iou = jnp.array([[[0.2, 0.6, 0.4, 0.9]]])
    valid = jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(
        normalise_over_proposals(iou, valid)[0, 0], [0.0, 1.0, 0.5, 0.0], atol=1e-6
    )


def test_equal_ious_normalise_to_zero():
    ones = jnp.ones((1, 1, 3))
    np.testing.assert_array_equal(normalise_over_proposals(ones, jnp.ones((1, 3), bool)), 0 * ones)


def test_mean_over_rows_and_proposals_by_literal_numbers():
    probability = jnp.array([[[0.2, 0.8], [0.5, 0.5]]])  # one image, two proposals
    target = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])  # two rows
    present, valid = jnp.array([[1, 0]]), jnp.ones((1, 2), bool)
    total = mask_aware_terms(probability, target, present, valid).sum()
    # row of class 1: .8 against 1, .5 against 0; row of class 0: .2 against 0, .5 against 1
    expected = 0.5 * np.square([0.2, 0.5, 0.2, 0.5]).mean()
    np.testing.assert_allclose(total / count_terms(present, valid), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("smooth_l1", torch.nn.functional.smooth_l1_loss),
        ("l1", torch.nn.functional.l1_loss),
        ("l2", torch.nn.functional.mse_loss),
    ],
)
def test_elementwise_losses_are_torchs(kind, reference):
    p = np.linspace(-1.0, 2.0, 31, dtype=np.float32)
    q = np.linspace(0.0, 1.0, 31, dtype=np.float32)
    ours = mask_aware.MASK_AWARE_LOSSES[kind](jax.device_put(p), jax.device_put(q))
    expected = reference(torch.from_numpy(p), torch.from_numpy(q), reduction="none")
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", mask_aware.MASK_AWARE_LOSSES)
def test_every_loss_can_be_chosen(kind):
    assert small_config({"data.root": "photos"}, loss__mask_aware=kind).loss.mask_aware == kind


def test_kl_is_torchs_divergence_of_bernoulli_distributions():
    p = np.linspace(0.05, 0.95, 19, dtype=np.float32)
    q = np.linspace(0.0, 1.0, 19, dtype=np.float32)
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(
        bernoulli(torch.from_numpy(q)), bernoulli(torch.from_numpy(p))
    )
    np.testing.assert_allclose(
        mask_aware.kl(jax.device_put(p), jax.device_put(q)), expected.numpy(), atol=1e-5
    )
    extreme = mask_aware.kl(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))
    assert np.isfinite(extreme).all()
