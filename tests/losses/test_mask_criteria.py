"""Both criteria of mask generators against the official code: matching, losses, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from maft_jax.losses.mask_criteria import (
    DenseCriterion,
    PointCriterion,
    Points,
    class_weight_total,
    criterion_terms,
    matching_costs,
    num_targets,
)
from maft_jax.losses.mask_matching import Targets, match
from maft_jax.losses.mask_samples import sample_masks, select_points
from maft_jax.models.generators.predictions import cosine_logits
from tests.golden_files import golden

POINTS, DENSE = PointCriterion(num_points=196), DenseCriterion()
MOST_TARGETS = 6
"""Of an image in a batch: two of the golden ones have padding behind them."""


@pytest.fixture(scope="module")
def arrays():
    return golden("generators/losses")


def padded(masks, labels, most=MOST_TARGETS) -> Targets:
    """Targets of images of which each has some."""
    shape = (len(masks), most, *np.shape(masks[0])[1:])
    padded_masks, classes = np.zeros(shape, bool), np.full(shape[:2], -1, np.int32)
    for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        padded_masks[image, : len(mask)] = mask
        classes[image, : len(label)] = label
    return Targets(jax.device_put(padded_masks), jax.device_put(classes))


def unpacked(arrays, name):
    return np.unpackbits(arrays[name], axis=-1).astype(bool)


def golden_targets(arrays, case) -> Targets:
    if case == "many":
        masks, labels = unpacked(arrays, "many/target_masks_bits"), arrays["many/target_labels"]
        return padded([masks], [labels], 9)
    masks = [unpacked(arrays, f"target_masks_{image}_bits") for image in (0, 1)]
    labels = [arrays[f"target_labels_{image}"] for image in (0, 1)]
    targets = padded(masks, labels)
    classes = np.array(targets.classes)
    if case == "class_agnostic":
        classes[classes >= 0] = 0
    if case.startswith("empty"):
        classes[1] = -1
    if case.startswith("all_empty"):
        classes[:] = -1
    return targets.replace(classes=jax.device_put(classes))


def golden_predictions(arrays, case):
    """Mask and class logits of the layers that a case has."""
    masks = arrays["pred_masks_f16"].astype(np.float32)
    classes = arrays["pred_logits_f16"].astype(np.float32)
    if "empty" in case:
        return masks[1:], classes[1:]
    if case == "many":
        return masks[1:, :1, :4], classes[1:, :1, :4]
    if case == "class_agnostic":
        return masks, classes[..., [0, 5]]
    return masks, classes


def golden_points(arrays, case, layer, targets) -> Points:
    """The official points, which follow each other by image and query, at their targets."""
    batch, most = targets.classes.shape
    candidates = np.zeros((batch, most, 588, 2), np.float32)
    fresh = np.zeros((batch, most, 49, 2), np.float32)
    points = "mask2former" if case == "class_agnostic" else case
    row = 0
    for image in range(batch):
        for target in arrays.get(f"{case}/match_{layer}_{image}", np.zeros((2, 0), int))[1]:
            candidates[image, target] = arrays[f"{points}/oversampled_points_{layer}"][row]
            fresh[image, target] = arrays[f"{points}/random_points_{layer}"][row]
            row += 1
    matching = arrays[f"{points}/matcher_points_{layer}"]
    return Points(*jax.device_put((matching, candidates, fresh)))


@functools.partial(jax.jit, static_argnums=0)
def one_layer(criterion, mask_logits, class_logits, targets, points):
    """Losses by name with the gradients of their weighted sum, the costs and the matching."""

    def weighted(mask_logits, class_logits):
        terms = criterion_terms(criterion, mask_logits, class_logits, targets, points)
        count, weight = (
            num_targets(targets.classes),
            class_weight_total(class_logits.shape[1], targets.classes),
        )
        losses = {
            "ce": jnp.sum(terms.classes) / weight,
            "mask": jnp.sum(terms.masks) / count,
            "dice": jnp.sum(terms.dice) / count,
        }
        weights = criterion.class_weight, criterion.mask_weight, criterion.dice_weight
        return jnp.dot(jnp.array(weights), jnp.stack([*losses.values()])), losses

    costs = matching_costs(criterion, mask_logits, class_logits, targets, points)
    derive = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)
    (_, losses), gradients = derive(mask_logits, class_logits)
    return losses, gradients, costs, match(costs, targets.valid)


def close(found, expected):
    """Within 1e-5 of the largest entry."""
    scale = max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=1e-5)


CASES = {
    "mask2former": POINTS,
    "freeseg": DENSE,
    "many": POINTS,
    "empty_mask2former": POINTS,
    "empty_freeseg": DENSE,
    "all_empty_mask2former": POINTS,
    "all_empty_freeseg": DENSE,
    "class_agnostic": POINTS,
}


@pytest.mark.parametrize("case", CASES)
def test_matching_losses_and_gradients_are_the_official_ones(arrays, case):
    criterion, targets = CASES[case], golden_targets(arrays, case)
    counted = arrays[f"{case}/layer_counts"]
    for layer, (masks, classes) in enumerate(zip(*golden_predictions(arrays, case), strict=True)):
        points = None if criterion is DENSE else golden_points(arrays, case, layer, targets)
        losses, gradients, costs, matching = one_layer(criterion, masks, classes, targets, points)
        for image in range(len(masks)):
            found = np.flatnonzero(matching.matched[image])
            pairs = set(zip(matching.query[image][found].tolist(), found.tolist(), strict=True))
            official = arrays.get(f"{case}/match_{layer}_{image}", np.zeros((2, 0), int))
            assert pairs == set(map(tuple, official.T.tolist()))
            if official.size:
                expected = arrays[f"{case}/cost_{layer}_{image}"].T
                close(costs[image, : len(expected)], expected)
        for name, loss in losses.items():
            expected = arrays[f"{case}/loss_{name}"][layer]
            np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
        if counted[layer]:
            expected = arrays[f"{case}/grad_pred_logits"][layer]
            close(gradients[1], expected)
            if f"{case}/grad_pred_masks" in arrays:
                close(gradients[0], arrays[f"{case}/grad_pred_masks"][layer])


def test_uncertain_points_are_the_official_ones(arrays):
    targets = golden_targets(arrays, "mask2former")
    points = golden_points(arrays, "mask2former", 1, targets)
    masks = arrays["pred_masks_f16"][1].astype(np.float32)
    row = 0
    for image in range(2):
        for query, target in arrays[f"mask2former/match_1_{image}"].T:
            chosen = select_points(
                jax.device_put(masks[image, query]),
                points.candidates[image, target],
                points.fresh[image, target],
                POINTS.num_uncertain,
            )
            official = arrays["mask2former/used_points_1"][row]
            assert {*map(tuple, np.asarray(chosen))} == {*map(tuple, official)}
            row += 1


def test_classes_against_text_are_scored_by_cosines(arrays):
    """Gradients reach class embeddings and the "no object" row."""
    targets, masks = golden_targets(arrays, "text"), golden_predictions(arrays, "text")[0]
    embeddings = arrays["text/class_embeddings_f16"].astype(np.float32)
    non_object = arrays["text/non_object_embedding_f16"].astype(np.float32)
    text = arrays["text/text_features"]

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def class_loss(embedding, non_object, mask_logits):
        unit = non_object / jnp.linalg.norm(non_object)
        logits = cosine_logits(embedding, jnp.concatenate([text, unit]))
        terms = criterion_terms(DENSE, mask_logits, logits, targets, None)
        return jnp.sum(terms.classes) / class_weight_total(20, targets.classes)

    loss, gradients = jax.jit(class_loss)(embeddings[1], non_object, masks[1])
    np.testing.assert_allclose(loss, arrays["text/loss_ce"][1], rtol=1e-5)
    close(gradients[0], arrays["text/grad_class_embeddings"][1])


def test_matching_is_scipys_whatever_the_padding():
    rng = np.random.default_rng(0)
    run = jax.jit(match)
    for queries, most in ((8, 5), (5, 8)):
        costs = rng.normal(size=(20, most, queries)).astype(np.float32)
        numbers = rng.integers(0, most + 1, 20)
        valid = np.arange(most) < numbers[:, None]
        valid = np.take_along_axis(
            valid, rng.permuted(np.tile(np.arange(most), (20, 1)), axis=1), 1
        )
        matching = run(costs, valid)
        for cost, there, query, matched in zip(
            costs, valid, matching.query, matching.matched, strict=True
        ):
            targets = np.flatnonzero(there)
            rows, columns = scipy.optimize.linear_sum_assignment(cost[targets])
            assert {*zip(np.flatnonzero(matched), np.asarray(query)[matched], strict=True)} == {
                *zip(targets[rows], columns, strict=True)
            }


def test_costs_that_are_not_finite_do_not_stop_the_step():
    costs = np.full((1, 2, 3), np.nan, np.float32)
    costs[0, 0, 1] = np.inf
    matching = jax.jit(match)(costs, np.ones((1, 2), bool))
    assert len({*matching.query[0].tolist()}) == 2 and matching.matched.all()


def test_masks_are_read_between_their_pixels():
    mask = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    points = jnp.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 0.25], [0.5, 0.25]])
    np.testing.assert_allclose(sample_masks(mask, points), [0, 1, 1.5, 0, 0.5])
    outside = jnp.array([[1.0, 0.75], [1.3, 0.75]])
    np.testing.assert_allclose(sample_masks(mask, outside), [1.5, 0])


def test_points_depend_on_the_images_key_alone():
    keys = jax.random.split(jax.random.key(3), 4)
    criterion = dataclasses.replace(POINTS, num_points=8)
    together, alone = criterion.draw(keys, 2), criterion.draw(keys[2:3], 2)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[2:3], y), together, alone)
    assert together.candidates.shape == (4, 2, 24, 2) and together.fresh.shape == (4, 2, 2, 2)
