"""Panoptic and instance results of masks with class probabilities, against FC-CLIP's own code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maft_jax
from input_pipeline.run_lengths import decode_segmentation
from maft_jax.config.sections import MeshConfig
from maft_jax.inference import row_strips
from maft_jax.inference.instances import find_instances, interiors_of_batch
from maft_jax.inference.panoptic import own_batch, segment_image
from maft_jax.inference.segment_rules import RULES, SegmentRules, find_rules, find_things
from maft_jax.inference.segmentation import ImageSegmenter
from maft_jax.inference.segments import PanopticSegmentation
from maft_jax.models.mask_pixels import PlacedMasks
from maft_jax.runtime.sharding import batch_sharding, make_mesh
from tests.golden_files import golden

NAMES = tuple("abcdefg")


def golden_case():
    """Arguments of both functions, all but the rules."""
    arrays = golden("segments/fcclip_inference")
    probabilities = jax.nn.softmax(jax.device_put(arrays["ensemble_log_probability"])[None])
    sizes = (
        jnp.asarray(arrays[f"{name}_size"], jnp.int32)[None]
        for name in ("padded", "image", "original")
    )
    values = jax.device_put(arrays["mask_logits_f16"].astype(np.float32))[None]
    masks = PlacedMasks(values, *sizes, kind="logits")
    image = np.zeros((*arrays["original_size"], 3), np.uint8)
    things = frozenset(arrays["things"].tolist())
    return image, probabilities[..., :-1], masks, NAMES, things


def assert_same_pixels(ours, theirs):
    """But for one in 10,000, which lie within a millionth of a threshold."""
    assert (ours != theirs).mean() <= 1e-4


@pytest.mark.parametrize("pixels_at_a_time", [2**22, 256 * 64])
def test_panoptic_segments_are_those_of_the_official_code(monkeypatch, pixels_at_a_time):
    monkeypatch.setattr(row_strips, "_PIXELS_AT_A_TIME", pixels_at_a_time)
    arrays = golden("segments/fcclip_inference")
    found = segment_image(*golden_case(), RULES["fcclip"])
    assert RULES["fcclip"].object_threshold == arrays["object_mask_threshold"]
    assert RULES["fcclip"].overlap_threshold == arrays["overlap_threshold"]
    assert_same_pixels(found.segment_map, arrays["panoptic_ids"])
    listed = [(s.id, s.class_index, s.is_thing) for s in found.segments]
    assert listed == [tuple(row) for row in arrays["panoptic_segments"].tolist()]
    for segment in found.segments:
        x, y, width, height = segment.box
        is_here = found.segment_map == segment.id
        assert segment.num_pixels == is_here.sum() == is_here[y : y + height, x : x + width].sum()
        assert is_here.any(axis=1).sum() <= height and is_here.any(axis=0).sum() <= width
        assert segment.class_name == NAMES[segment.class_index]


@pytest.mark.parametrize("pixels_at_a_time", [2**22, 256 * 64])
def test_instances_are_those_of_the_official_code_that_have_pixels(monkeypatch, pixels_at_a_time):
    monkeypatch.setattr(row_strips, "_PIXELS_AT_A_TIME", pixels_at_a_time)
    arrays = golden("segments/fcclip_inference")
    rules = SegmentRules(0.0, 0.0, max_instances=int(arrays["topk"]))
    found = find_instances(*golden_case(), rules)
    there = arrays["instance_mask_areas"] > 0
    assert 0 < there.sum() < len(there)
    indices = [instance.class_index for instance in found.instances]
    assert indices == arrays["instance_classes"][there].tolist()
    scores = [instance.score for instance in found.instances]
    np.testing.assert_allclose(scores, arrays["instance_scores"][there], atol=1e-4)
    width = arrays["original_size"][1]
    theirs = np.unpackbits(arrays["instance_masks_bits"][there], axis=-1, count=width)
    for instance, encoded, mask in zip(found.instances, found.run_lengths, theirs, strict=True):
        ours = decode_segmentation(encoded, (0, 0))
        assert_same_pixels(ours, mask)
        assert instance.num_pixels == ours.sum()
        x, y, w, h = instance.box
        rows, columns = np.nonzero(ours)
        assert (x, y, x + w - 1, y + h - 1) == (
            columns.min(),
            rows.min(),
            columns.max(),
            rows.max(),
        )
    fewer = dataclasses.replace(rules, instance_threshold=0.5)
    assert len(find_instances(*golden_case(), fewer).instances) == sum(s > 0.5 for s in scores)


@pytest.fixture(scope="module")
def segmenter() -> ImageSegmenter:
    clip = dataclasses.replace(maft_jax.load("random:tiny", 2), image_size=96)
    return ImageSegmenter(clip, ["cat", "sofa"], background=["wall"], num_proposals=4)


IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


def quarters() -> np.ndarray:
    masks = np.zeros((4, 70, 90), bool)
    masks[0, :35, :45] = masks[1, :35, 45:] = masks[2, 35:, :45] = masks[3, 35:, 45:] = True
    return masks


def with_classes(monkeypatch, segmenter, probabilities) -> None:
    """Gives the proposals these probabilities of cat, sofa and wall."""
    made = jnp.asarray(probabilities, jnp.float32)[None]
    monkeypatch.setattr(segmenter._segmenter, "class_probabilities", lambda *_: made)


QUARTERS = [[0.6, 0.4, 0], [0.7, 0.2, 0.1], [0.1, 0.15, 0.75], [0.2, 0.8, 0]]


def areas(found: PanopticSegmentation) -> list[tuple]:
    return [(s.class_name, s.is_thing, round(s.score, 6)) for s in found.segments]


def test_parts_of_stuff_join_things_stay_apart_and_background_is_void(monkeypatch, segmenter):
    with_classes(monkeypatch, segmenter, QUARTERS)
    apart = segmenter.panoptic(IMAGE, quarters(), things=["cat"])
    assert areas(apart) == [("cat", True, 0.6), ("cat", True, 0.7), ("sofa", False, 0.8)]
    assert set(np.unique(apart.segment_map[40:, :40])) == {0}
    assert (apart.segment_map[:30, :40] == 1).all() and (apart.segment_map[:30, 50:] == 2).all()
    assert apart.things == {0}
    joined = segmenter.panoptic(IMAGE, quarters(), things=[1])
    assert areas(joined) == [("cat", False, 0.7), ("sofa", True, 0.8)]
    assert (joined.segment_map[:30] == 1).all()
    sure = segmenter.panoptic(IMAGE, quarters(), rules=SegmentRules(0.6001, 0.5))
    assert areas(sure) == [("cat", True, 0.7), ("sofa", True, 0.8)]


def test_a_row_that_lacks_more_to_one_than_its_best_class_is_void(monkeypatch, segmenter):
    rows = [[0.3, 0.1, 0], [0.5, 0.1, 0], [0, 0, 0], [0.1, 0.8, 0]]
    with_classes(monkeypatch, segmenter, rows)
    found = segmenter.panoptic(IMAGE, quarters(), rules="fcclip")
    assert areas(found) == [("cat", True, 0.5), ("sofa", True, 0.8)]


def test_what_keeps_too_little_of_its_mask_is_dropped_and_its_pixels_are_void(
    monkeypatch, segmenter
):
    masks = quarters()
    masks[1] = masks[0] | masks[1]
    with_classes(monkeypatch, segmenter, QUARTERS)
    found = segmenter.panoptic(IMAGE, masks, rules="fcclip")  # 1 wins where 0 is
    assert areas(found) == [("cat", True, 0.7), ("sofa", True, 0.8)]
    QUARTERS_TURNED = [QUARTERS[1], QUARTERS[0], *QUARTERS[2:]]
    with_classes(monkeypatch, segmenter, QUARTERS_TURNED)
    found = segmenter.panoptic(IMAGE, masks, rules="fcclip")  # and keeps half of its own here
    assert areas(found) == [("cat", True, 0.7), ("sofa", True, 0.8)]
    assert (found.segment_map[:30, 50:] == 0).all()


def test_instances_of_one_proposal_may_be_several_and_stuff_is_none(monkeypatch, segmenter):
    with_classes(monkeypatch, segmenter, QUARTERS)
    found = segmenter.instances(
        segmenter.prepare(IMAGE, quarters()), rules=SegmentRules(0.0, 0.0, 4)
    )
    assert [i.class_name for i in found.instances] == ["sofa", "cat", "cat", "sofa"]
    assert found.run_lengths[2] == found.run_lengths[3]
    cats = segmenter.instances(IMAGE, quarters(), things=["cat"])
    assert {i.class_name for i in cats.instances} == {"cat"}
    assert [i.id for i in cats.instances] == [1, 2, 3, 4]


def test_a_prepared_image_has_its_own_proposals(segmenter):
    prepared = segmenter.prepare(IMAGE, quarters())
    with pytest.raises(ValueError, match="proposals: expected none with what `prepare` returned"):
        segmenter.panoptic(prepared, quarters())


def test_of_plain_clip_every_proposal_has_a_class(segmenter):
    found = segmenter.panoptic(IMAGE, rules=SegmentRules(0.0, 0.0))
    assert 0 < len(found.segments) <= 4 and found.segment_map.shape == (70, 90)
    assert segmenter.instances(IMAGE).instances[0].score <= 1


@pytest.mark.slow
def test_images_on_several_devices_are_segmented_as_one_by_one():
    _, probabilities, masks, _, _ = golden_case()
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    both = [jnp.concatenate([probabilities, 1 - probabilities]), jax.tree.map(twice, masks)]
    spread = jax.device_put(both, batch_sharding(mesh))
    classes, scores, found = own_batch(*spread, 7, RULES["fcclip"], (192, 256), mesh=mesh)
    pairs, inside = interiors_of_batch(*spread, 7, RULES["fcclip"], (192, 256), mesh=mesh)
    alone = own_batch(probabilities, masks, 7, RULES["fcclip"], (192, 256))
    np.testing.assert_array_equal(found.owner[0], alone[2].owner[0])
    np.testing.assert_array_equal(classes[0], alone[0][0])
    _, bits = interiors_of_batch(probabilities, masks, 7, RULES["fcclip"], (192, 256))
    np.testing.assert_array_equal(inside.bits[0], bits.bits[0])
    assert len(found.owner.sharding.device_set) == 2 and scores.shape == (2, 12)
    assert not np.array_equal(pairs.classes[0], pairs.classes[1])


def twice(array):
    return jnp.concatenate([array, array])


@pytest.mark.parametrize("wrong", ["cat", ["dog"], [2], [-1]])
def test_things_are_names_or_indices_of_classes(wrong):
    with pytest.raises(ValueError, match="things: "):
        find_things(wrong, ("cat", "sofa"))


def test_rules_have_names_and_ranges():
    assert find_rules("maft_plus") == SegmentRules(0.2, 0.7)
    with pytest.raises(ValueError, match="rules: expected one of"):
        find_rules("fc-clip")
    with pytest.raises(ValueError, match="overlap_threshold: expected 0 to 1"):
        SegmentRules(0.0, 1.5)
    with pytest.raises(ValueError, match="max_instances: expected at least 1"):
        SegmentRules(0.0, 0.0, 0)
