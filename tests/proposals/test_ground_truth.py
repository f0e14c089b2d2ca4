import pickle

import numpy as np
import pytest
from skimage.draw import disk, polygon
from skimage.measure import label as connected_components
from skimage.morphology import convex_hull_image

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.ground_truth import KINDS, GroundTruthProposals


def _two_classes():
    labels = np.full((40, 80), IGNORE, np.int32)
    labels[:, :10] = 3
    labels[:, 70:] = 3
    labels[:20, 70:] = IGNORE
    labels[:, 20:60] = 5
    return labels


def _shapes():
    """A disk, a triangle and a bar on a background, all of different classes."""
    labels = np.zeros((240, 320), np.int32)
    labels[disk((80, 90), 50)] = 1
    labels[polygon([130, 220, 220], [230, 180, 300])] = 2
    labels[20:40, 180:310] = 3
    return labels


def _propose(labels, num_proposals, *kinds, example_id="a"):
    image = np.zeros((*labels.shape, 3), np.uint8)
    generator = GroundTruthProposals(kinds or ("regions",))
    return generator(Example(example_id, image, labels), num_proposals)


def test_instances_are_regions_whatever_they_touch_and_however_many_pieces_they_have():
    labels = np.zeros((8, 12), np.int32)
    labels[2:6, 1:11] = 1
    instances = np.zeros_like(labels)
    instances[2:6, 1:4] = 1
    instances[2:6, 4:6] = 2
    instances[2:6, 6:11] = 1
    example = Example("a", np.zeros((8, 12, 3), np.uint8), labels, instances=instances)
    masks = GroundTruthProposals()(example, 9).masks
    expected = [labels == 0, labels == 1, instances == 1, instances == 2]
    np.testing.assert_array_equal(masks, expected)
    without = GroundTruthProposals()(Example("a", example.image, labels), 9).masks
    np.testing.assert_array_equal(without, expected[:2])


def _ious(masks, region):
    return (masks & region).sum(axis=(1, 2)) / (masks | region).sum(axis=(1, 2))


def test_classes_come_first_then_pieces_each_largest_first():
    masks = _propose(_two_classes(), 10).masks
    labels = _two_classes()
    left, right = np.indices(labels.shape)[1] < 10, labels == 3
    expected = [labels == 5, labels == 3, left, right & ~left]
    np.testing.assert_array_equal(masks, expected)


def test_pieces_of_a_fully_labelled_image():
    labels = np.zeros((40, 80), np.int32)
    labels[:, 30:40] = 4
    masks = _propose(labels, 10).masks
    assert len(masks) == 4
    np.testing.assert_array_equal(masks[2] ^ masks[3], masks[0])


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], tuple(KINDS)])
def test_number_of_proposals_is_a_limit(kinds):
    assert len(_propose(_shapes(), 1, *kinds).masks) == 1
    assert len(_propose(_shapes(), 50, *kinds).masks) <= 50


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], tuple(KINDS)])
def test_unlabelled_image_has_no_proposals(kinds):
    proposals = _propose(np.full((9, 9), IGNORE, np.int32), 5, *kinds)
    assert proposals.masks.shape == (0, 9, 9)
    assert proposals.scores.shape == (0,)


def test_jittered_regions_cover_qualities_from_half_to_nearly_perfect():
    ious = _propose(_shapes(), 200, "jittered").scores
    assert ious.min() >= 0.45 and ious.max() <= 0.99
    # Uniform between 0.5 and 0.95: each third of it has about a third of the masks.
    assert np.histogram(ious, [0.45, 0.65, 0.8, 1.0])[0].min() > 45


def test_jittered_regions_take_the_regions_in_turn_and_scores_are_their_ious():
    regions = _propose(_shapes(), 10).masks
    jittered = _propose(_shapes(), 3 * len(regions), "jittered")
    for turn, region in enumerate(regions):
        np.testing.assert_allclose(
            _ious(jittered.masks[turn :: len(regions)], region),
            jittered.scores[turn :: len(regions)],
            atol=1e-6,
        )


def test_jittered_masks_of_a_region_differ_in_place_size_and_outline():
    labels = np.where(_shapes() == 1, 1, IGNORE).astype(np.int32)
    masks = _propose(labels, 30, "jittered").masks
    area = (labels == 1).sum()
    areas = masks.sum(axis=(1, 2))
    assert (areas < 0.8 * area).any() and (areas > 1.2 * area).any()
    centers = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    assert np.all(centers.std(axis=0) > 3)
    assert len(np.unique(masks.reshape(30, -1), axis=0)) == 30


def test_scattered_pixels_are_not_jittered():
    labels = np.full((64, 64), IGNORE, np.int32)
    labels[::16, ::16] = 2
    assert len(_propose(labels, 5, "jittered").masks) == 0
    assert len(_propose(labels, 5, "parts").masks) == 0


def test_unions_are_pairs_of_neighbours_even_across_an_unlabelled_seam():
    labels = np.full((60, 90), IGNORE, np.int32)
    labels[:, :20] = 1
    labels[:, 25:55] = 2
    labels[:, 85:] = 3
    unions = _propose(labels, 10, "unions")
    np.testing.assert_array_equal(unions.masks, [(labels == 1) | (labels == 2)])
    np.testing.assert_allclose(unions.scores, [30 / 50], atol=1e-6)


def test_unions_of_a_row_of_four_regions():
    labels = np.repeat(np.arange(4, dtype=np.int32), 20)[None].repeat(30, axis=0)
    unions = _propose(labels, 10, "unions").masks
    expected = [(labels == i) | (labels == i + 1) for i in range(3)]
    np.testing.assert_array_equal(unions, expected)


def test_parts_partition_their_region():
    labels = np.where(_shapes() == 2, 2, IGNORE).astype(np.int32)
    region = labels == 2
    parts = _propose(labels, 30, "parts")
    start = cuts = 0
    while True:
        covered = np.zeros(region.shape, int)
        for stop in range(start, len(parts.masks)):
            covered += parts.masks[stop]
            if np.array_equal(covered, region):
                break
        else:
            break
        assert 2 <= stop + 1 - start <= 4
        np.testing.assert_allclose(parts.scores[start : stop + 1].sum(), 1, atol=1e-6)
        start, cuts = stop + 1, cuts + 1
    assert cuts >= 7
    assert all(connected_components(part).max() == 1 for part in parts.masks)


def _cuts(masks):
    """The masks in groups that cover the picture once."""
    groups, covered = [[]], np.zeros(masks.shape[1:], int)
    for mask in masks:
        groups[-1].append(mask)
        covered += mask
        assert covered.max() == 1
        if covered.all():
            groups.append([])
            covered[:] = 0
    return [np.array(group) for group in groups[:-1]]


@pytest.mark.slow
def test_random_pieces_are_convex_and_partition_the_picture_into_three_to_eight():
    cuts = _cuts(_propose(_shapes(), 400, "random").masks)
    assert {len(cut) for cut in cuts} == set(range(3, 9))
    for cut in cuts:
        for mask in cut:
            np.testing.assert_array_equal(mask, convex_hull_image(mask, offset_coordinates=False))


def test_scores_of_random_pieces_are_their_best_ious_with_a_class():
    labels = _shapes()
    labels[:, :40] = IGNORE
    proposals = _propose(labels, 40, "random")
    ious = [_ious(proposals.masks, labels == number) for number in range(4)]
    np.testing.assert_allclose(proposals.scores, np.max(ious, axis=0), atol=1e-6)
    assert proposals.scores.max() < 0.9


def test_random_pieces_know_nothing_of_the_regions():
    """Where everything is labelled otherwise, the pieces are the same."""
    labels = _shapes()
    other = np.where(labels == 0, IGNORE, 7 - labels).astype(np.int32)
    pieces, others = (_propose(kind, 30, "random") for kind in (labels, other))
    np.testing.assert_array_equal(pieces.masks, others.masks)
    assert not np.array_equal(pieces.scores, others.scores)
    third = _propose(labels, 30, "random", example_id="b")
    assert not np.array_equal(pieces.masks, third.masks)


def test_kinds_take_turns_and_none_starves():
    proposals = _propose(_shapes(), 3 * len(KINDS), *KINDS)
    for turn, kind in enumerate(KINDS):
        alone = _propose(_shapes(), 3, kind)
        np.testing.assert_array_equal(proposals.masks[turn :: len(KINDS)], alone.masks)


def test_kind_that_ends_leaves_its_turns_to_the_others():
    labels = np.zeros((40, 40), np.int32)
    proposals = _propose(labels, 20, "regions", "unions", "jittered")
    assert len(proposals.masks) == 20
    assert np.count_nonzero(proposals.scores == 1) < 5


def test_randomness_depends_on_the_example_id_alone():
    generator = pickle.loads(pickle.dumps(GroundTruthProposals(("jittered", "parts"))))
    assert isinstance(generator, ProposalGenerator)
    image = np.ones((*_shapes().shape, 3), np.uint8)
    one = _propose(_shapes(), 12, "jittered", "parts")
    again = generator(Example("a", image, _shapes()), 12)
    np.testing.assert_array_equal(one.masks, again.masks)
    other = _propose(_shapes(), 12, "jittered", "parts", example_id="b")
    assert not np.array_equal(one.masks, other.masks)


def test_fingerprint_changes_with_the_kinds():
    kinds = [("regions",), ("jittered",), ("regions", "jittered"), ("jittered", "regions")]
    assert len({GroundTruthProposals(kind).fingerprint for kind in kinds}) == 4


@pytest.mark.parametrize("kinds", [(), ("regions", "boxes")])
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(ValueError, match=r"config\.proposals\.kinds: expected"):
        GroundTruthProposals(kinds)


def test_large_label_maps_are_read_at_a_resolution_that_fits_into_memory():
    labels = np.zeros((6000, 4000), np.int32)
    labels[:, 1000:] = 1
    masks = _propose(labels, 4, *KINDS).masks
    assert masks.shape == (4, 2048, 1365)
    np.testing.assert_allclose(masks[0].mean(), 0.75, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2), (37, 301)])
def test_label_maps_of_any_size_have_proposals(size):
    labels = np.random.default_rng(0).integers(0, 2, size).astype(np.int32)
    assert len(_propose(labels, 20, *KINDS).masks) > 0


def test_label_noise_of_half_a_million_specks_is_no_danger():
    labels = np.random.default_rng(0).integers(0, 100, (900, 900)).astype(np.int32)
    assert len(_propose(labels, 8, *KINDS).masks) == 8
