"""FC-CLIP as a whole against its official code: classes of masks, the ensemble, label maps."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from input_pipeline.image_files import read_label_map
from input_pipeline.sample_folder import draw_scene
from maft_jax.convert.method_modules import MASK_ADAPTER
from maft_jax.convert.rules import to_foreign
from maft_jax.inference.fcclip import FcClipSegmenter, _Settings
from maft_jax.inference.instances import find_instances
from maft_jax.inference.logit_labels import label_logits
from maft_jax.inference.panoptic import segment_image
from maft_jax.inference.segment_rules import SegmentRules
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapter, MaskAdapterConfig
from maft_jax.models.encoder import EncoderSettings
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.models.mask_pixels import PlacedMasks
from maft_jax.runtime.sharding import one_device_mesh
from tests import maft_plus_in_torch as theirs
from tests import runs
from tests.fcclip_files import (
    checkpoint_tensors,
    class_names,
    maft_plus_tensors,
    write_checkpoint,
)
from tests.golden_files import golden

THINGS = frozenset({0, 1, 5})
READ = {"padded_size": (128, 160), "image_size": (118, 150)}


def expected():
    return golden("fcclip/expected")


AS_IT_IS = ImagePreparation(stretch=False, shortest_edge=118, rounds=True)
WITH_ADAPTER_AS_IT_IS = dataclasses.replace(AS_IT_IS, longest_edge=896)
"""Of the golden image: in place of the authors' 800 and 1333 pixels, and of 896 with an adapter."""


def segmenter_of(checkpoint, **options):
    """With the golden vocabulary; it reads the golden image as it is."""
    names = class_names()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("maft_jax.convert.generators.FCCLIP_PREPARATION", AS_IT_IS)
        patched.setattr("maft_jax.inference.fcclip.ADAPTER_PREPARATION", WITH_ADAPTER_AS_IT_IS)
        return FcClipSegmenter(
            checkpoint,
            [first for first, *_ in names],
            synonyms={first: further for first, *further in names},
            cache_dir=checkpoint.parent,
            **options,
        )


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    segmenter = segmenter_of(
        write_checkpoint(tmp_path_factory.mktemp("fcclip") / "fcclip.pth"),
        trained=[text.split(",") for text in expected()["train_classes"].tolist()],
    )
    np.testing.assert_array_equal(segmenter._seen, expected()["seen"])
    assert segmenter.preparation == AS_IT_IS
    return segmenter


@pytest.fixture(scope="module")
def segmentation(segmenter):
    """Of the golden image."""
    return segmenter(expected()["image_uint8"])


def weights_of_masks():
    return jax.nn.softmax(expected()["ensemble_log_probabilities"][0])[:, :-1]


@pytest.mark.slow
def test_masks_are_weighed_as_the_official_code_does_from_one_file_and_a_picture(segmentation):
    theirs = np.asarray(weights_of_masks())
    logs = np.log(segmentation.proposal_probabilities + 1e-9)
    largest = np.abs(expected()["ensemble_log_probabilities"]).max()
    np.testing.assert_allclose(logs, np.log(theirs + 1e-9), rtol=0, atol=5e-5 * largest)


@pytest.mark.slow
def test_label_map_at_the_size_that_was_read_is_that_of_the_golden_masks(segmentation):
    masks = torch.tensor(expected()["pred_masks"])
    masks = F.interpolate(masks, READ["padded_size"], mode="bilinear")[0, :, :118, :150].sigmoid()
    scores = torch.einsum("nc,nhw->chw", torch.tensor(np.array(weights_of_masks())), masks)
    best = scores.topk(2, dim=0).values
    decided = ((best[0] - best[1]) > 1e-5).numpy()
    same = segmentation.label_map == scores.argmax(dim=0).numpy()
    assert same[decided].all() and decided.mean() > 0.9 and same.mean() > 0.999
    assert len(np.unique(segmentation.label_map)) >= 3
    share = (best[0] / scores.sum(dim=0)).numpy()
    np.testing.assert_allclose(segmentation.score, share, atol=1e-5)
    rows, columns = (torch.linspace(0, side - 1, -(-side // 4)) for side in (118, 150))
    assert segmentation.proposals.shape == (20, len(rows), len(columns))
    corners = segmentation.proposals[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    expected_corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].numpy()
    np.testing.assert_allclose(corners / 255, expected_corners, atol=0.5 / 255 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "name"), [("logits", "semantic_argmax"), ("scores", "semantic_argmax_late")]
)
@pytest.mark.parametrize("values_at_a_time", [2**26, 20 * 180 * 48])
def test_label_map_at_native_size_follows_the_order_of_the_configuration(
    monkeypatch, order, name, values_at_a_time
):
    monkeypatch.setattr("maft_jax.inference.logit_labels._VALUES_AT_A_TIME", values_at_a_time)
    arrays = expected()
    size = tuple(arrays["original_size"].tolist())
    masks = jax.device_put(arrays["pred_masks"][0])
    found = label_logits(masks, weights_of_masks(), **READ, size=size, order=order)
    decided = arrays[f"{name}_margin_f16"] > 1e-5
    assert (found.label_map == arrays[name])[decided].all()
    if order == "scores":
        best = arrays["semantic_scores_late_every_9th_row"].max(axis=0)
        np.testing.assert_allclose(found.score[::9], best, atol=1e-5)
    else:
        best = arrays["semantic_scores_every_9th_row_f16"].astype(np.float32).max(axis=0)
        np.testing.assert_allclose(found.score[::9], best, rtol=2**-10, atol=2**-24)


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "suffix"), [(0.5, ""), (0.8, "_strict")])
def test_panoptic_result_at_native_size_is_the_official_one(segmenter, overlap, suffix):
    arrays = golden("segments/fcclip_system")
    found = segment_image(*at_native_size(segmenter), SegmentRules(0.0, overlap))
    assert (found.segment_map != arrays[f"panoptic_ids{suffix}"]).mean() < 1e-4
    listed = [[s.id, s.class_index, int(s.is_thing)] for s in found.segments]
    assert listed == arrays[f"panoptic_segments{suffix}"].tolist()


@pytest.mark.slow
def test_instances_at_native_size_are_the_official_ones(segmenter):
    arrays = golden("segments/fcclip_system")
    found = find_instances(*at_native_size(segmenter), SegmentRules(0.0, 0.0))
    there = arrays["instance_areas"] > 0
    scores = [instance.score for instance in found.instances]
    np.testing.assert_allclose(scores, arrays["instance_scores"][there], atol=1e-3)
    indices = [instance.class_index for instance in found.instances]
    assert indices == arrays["instance_classes"][there].tolist()
    pixels = [instance.num_pixels for instance in found.instances]
    np.testing.assert_allclose(pixels, arrays["instance_areas"][there], atol=3)


@pytest.mark.slow
def test_segmenter_makes_segments_of_a_picture(segmenter):
    image = expected()["image_uint8"]
    found = segmenter.panoptic(image, things=["person", "dog"], rules=SegmentRules(0.0, 0.5))
    assert found.segment_map.shape == image.shape[:2] and found.things == {0, 1}
    assert len(found.segments) >= 2
    objects = segmenter.instances(image, things=["person", "dog"])
    assert {instance.class_index for instance in objects.instances} <= {0, 1}
    assert objects.run_lengths[0]["size"] == list(image.shape[:2])


def at_native_size(segmenter) -> tuple:
    """Arguments of segment_image, all but the rules, of what the network makes of the image."""
    masks, probabilities, read = segmenter._classified(expected()["image_uint8"])
    native = tuple(expected()["original_size"].tolist())
    sizes = (jnp.array([size], jnp.int32) for size in (*read.values(), native))
    placed = PlacedMasks(masks, *sizes, kind="logits")
    image = np.zeros((*native, 3), np.uint8)
    return image, probabilities, placed, segmenter.class_names, THINGS


@pytest.mark.slow
def test_maft_plus_adapts_rows_to_the_image_and_leaves_classes_to_its_tuned_tower(tmp_path):
    arrays = golden("fcclip/maft_plus")
    segmenter = segmenter_of(write_checkpoint(tmp_path / "maft.pth", maft_plus_tensors()))
    assert segmenter.is_maft_plus and segmenter.exponents == (1.0, 1.0)
    found = segmenter(expected()["image_uint8"])
    theirs = np.asarray(jax.nn.softmax(arrays["log_probabilities"][0]))[:, :-1]
    largest = np.abs(arrays["log_probabilities"]).max()
    logs = np.log(found.proposal_probabilities + 1e-9)
    np.testing.assert_allclose(logs, np.log(theirs + 1e-9), rtol=0, atol=5e-5 * largest)
    size = tuple(expected()["original_size"].tolist())
    weights = jax.device_put(found.proposal_probabilities)
    masks = jax.device_put(arrays["pred_masks"][0])
    labels = label_logits(masks, weights, **READ, size=size, order="scores").label_map
    decided = arrays["semantic_argmax_late_margin_f16"] > 1e-5
    assert (labels == arrays["semantic_argmax_late"])[decided].all()


@pytest.mark.slow
def test_panoptic_result_of_maft_plus_is_that_of_the_official_rule(tmp_path):
    """Of its panoptic kind, from one file and a picture."""
    tensors = maft_plus_tensors()
    segmenter = segmenter_of(write_checkpoint(tmp_path / "m.pth", tensors), transfer="panoptic")
    tensors = in_torch(tensors)
    embeddings = theirs.of_image("pooled_clip_embeddings")
    logits = theirs.tower_logits(tensors, embeddings, theirs.panoptic_rows(tensors))
    logs = theirs.log_probabilities(logits, segmenter._seen, segmenter.exponents)
    image = expected()["image_uint8"]
    masks, probabilities, _ = segmenter._classified(image)
    same_logs(probabilities[0], logs)
    masks = F.interpolate(
        theirs.of_image("pred_masks")[None], READ["padded_size"], mode="bilinear"
    )[0, :, : image.shape[0], : image.shape[1]].sigmoid()
    found = segmenter.panoptic(image, things=THINGS)
    ids, listed = theirs.panoptic_ids(logs, masks, THINGS, 0.2, 0.7)
    assert [[s.id, s.class_index, int(s.is_thing)] for s in found.segments] == listed
    assert (found.segment_map != ids).mean() < 1e-4 and len(listed) > 1


@pytest.mark.slow
def test_mask_adapter_for_maft_plus_reads_scrambled_cells_and_adapted_rows(tmp_path):
    """From one file and a picture."""
    config = MaskAdapterConfig(width=16, num_maps=5)
    tensors = with_adapter(config, maft_plus_tensors())
    trained = [text.split(",") for text in expected()["train_classes"].tolist()]
    segmenter = segmenter_of(write_checkpoint(tmp_path / "both.pth", tensors), trained=trained)
    assert segmenter.is_maft_plus and segmenter.exponents == (0.8, 1.0)
    assert segmenter.rules == SegmentRules(0.0, 0.7)
    masks, probabilities, _ = segmenter._classified(expected()["image_uint8"])
    largest = np.abs(golden("fcclip/maft_plus")["pred_masks"]).max()
    np.testing.assert_allclose(masks[0], theirs.of_image("pred_masks"), atol=1e-5 * largest)
    tensors = in_torch(tensors)
    inside = torch.tensor(np.array(masks[0])).sigmoid() > 0.4
    embeddings = theirs.adapted_embeddings(tensors, inside, config.num_maps)
    logits = theirs.tower_logits(tensors, embeddings, theirs.of_image("text_after_cdt"))
    logs = theirs.log_probabilities(logits, np.array(segmenter._seen), segmenter.exponents)
    same_logs(probabilities[0], logs)


def test_mask_adapters_for_the_two_sizes_of_maft_plus_have_settings_of_their_own():
    both = {"transfer": {}, "adapter": {}}
    base, large = (_Settings.of(both, width) for width in (640, 768))
    assert (base.exponents, base.mask_threshold) == ((0.7, 1.0), 0.45)
    assert (large.exponents, large.mask_threshold) == ((0.8, 1.0), 0.4)
    assert _Settings.of({"adapter": {}}, 768) == _Settings((0.7, 0.9), SegmentRules(0.0, 0.8), 0.5)


def in_torch(tensors):
    return {name: torch.tensor(value.astype(np.float32)) for name, value in tensors.items()}


def same_logs(probabilities, logs):
    """Within the golden tolerance of log probabilities."""
    expected_logs = np.log(logs.softmax(dim=-1)[:, :-1].numpy() + 1e-9)
    largest = np.abs(logs.numpy()).max()
    found = np.log(np.asarray(probabilities) + 1e-9)
    np.testing.assert_allclose(found, expected_logs, rtol=0, atol=5e-5 * largest)


def test_two_orders_differ_at_borders():
    arrays = expected()
    assert (arrays["semantic_argmax"] != arrays["semantic_argmax_late"]).any()


@pytest.mark.slow
def test_command_segments_a_photo_from_the_checkpoint_alone(tmp_path):
    photo, names = tmp_path / "photo.jpg", tmp_path / "names.txt"
    draw_scene(np.random.default_rng(0), (96, 72))[0].save(photo)
    names.write_text("0:person,child\n1:sky\n")
    checkpoint = write_checkpoint(tmp_path / "fcclip.pth")
    command = [sys.executable, "-m", "maft_jax.cli.predict", f"--weights={checkpoint}"]
    command += ["--generator=fcclip", f"--image={photo}", f"--cache_dir={tmp_path}"]
    command += [f"--classes_file={names}", f"--trained_classes={names}", f"--out={tmp_path}/out"]
    refused = runs.finish(runs.start([*command, "--flip"]), exit_code=2)
    assert "--flip: has no meaning with --generator=fcclip" in refused
    others = [part for part in command if part != "--generator=fcclip"]
    assert "--trained_classes: only with" in runs.finish(runs.start(others), exit_code=2)
    runs.finish(runs.start(command))
    about = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert about["settings"]["ensemble_exponents"] == [0.4, 0.8]
    assert (about["settings"]["short_side"], about["settings"]["max_long_side"]) == (800, 1333)
    assert about["settings"]["mask_threshold"] is None
    assert about["num_proposals"] == 20
    labels = read_label_map(tmp_path / "out" / "photo_labels.png")
    assert labels.shape == (72, 96) and set(np.unique(labels)) <= {0, 1}


def with_adapter(config, tensors, seed=0):
    """A checkpoint's tensors with an adapter of numbers large enough to matter."""
    embed_dim = expected()["text_features"].shape[-1]
    cells, masks = jnp.zeros((1, 1, 1, embed_dim)), jnp.zeros((1, 1, 1, 1))
    shapes = jax.eval_shape(MaskAdapter(config).init, jax.random.key(0), cells, masks)["params"]
    rng = np.random.RandomState(seed)
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    adapter = to_foreign(jax.tree.map(draw, shapes), MASK_ADAPTER)
    return tensors | {f"mask_adapter.{name}": x for name, x in adapter.items()}


@pytest.mark.slow
def test_mask_adapters_fcclip_reads_masks_as_evaluation_does(tmp_path):
    config = MaskAdapterConfig(width=16, num_maps=5)
    tensors = with_adapter(config, checkpoint_tensors())
    adapted = segmenter_of(write_checkpoint(tmp_path / "adapter.pth", tensors))
    assert (adapted.is_maft_plus, adapted.exponents) == (False, (0.7, 0.9))
    assert adapted.preparation == WITH_ADAPTER_AS_IT_IS
    (height, width), image = READ["image_size"], expected()["image_uint8"]
    padded = np.zeros((1, *READ["padded_size"], 3), np.uint8)
    padded[0, :height, :width] = image
    sizes, text = jnp.array([READ["image_size"]], jnp.int32), adapted._text
    masks, _, logits = jax.jit(adapted._network)(adapted._parameters, padded, sizes, text)
    vision = adapted._network.tower.config
    encoder = vision.make_encoder(EncoderSettings(vision.default_masking, one_device_mesh()))
    pixels = jnp.pad(
        encoder.normalise(jax.device_put(image[None])), ((0, 0), (0, 10), (0, 10), (0, 0))
    )
    reader, modules = AdapterReader(config), adapted._parameters["adapter"]
    visual, inside = adapted._parameters["visual"], jax.nn.sigmoid(masks) >= 0.5
    read = jax.jit(lambda *given: reader.read(encoder, *given))(visual, modules, pixels, inside)
    theirs = reader.logits(encoder, modules, read, text)
    assert theirs.shape == logits.shape == (1, 20, len(class_names()))
    np.testing.assert_allclose(logits / 100, theirs / 100, atol=1e-5)
