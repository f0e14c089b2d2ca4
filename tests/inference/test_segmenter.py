"""Inference on batches of the pipeline, against the official numbers and a plain rendition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from input_pipeline.eval_pipeline import EvalGeometry, make_eval_dataset
from input_pipeline.numpy_dataset import NumpyBatches
from maft_jax.benchmarks.pytorch.official_inference import segment
from maft_jax.config.sections import MeshConfig
from maft_jax.inference import segmenter as module
from maft_jax.inference.segmenter import IGNORE, InferenceSpec, Segmenter
from maft_jax.models.padded_inputs import encoder_image, patch_grid_masks
from maft_jax.models.pixel_labels import pixel_scores
from maft_jax.models.preprocess import normalised
from maft_jax.models.resize import resize
from maft_jax.runtime import sharding
from tests.golden_files import golden
from tests.input_pipeline.tiny_source import TinySource
from tests.models.test_freeseg_golden import VISION as OFFICIAL_VISION
from tests.models.test_freeseg_golden import official_student
from tests.models.test_ip_clip import ours, torch_clip
from tests.tiny_models import NUM_CLASSES, VISION, ip_clip, tiny_text, tiny_visual

GEOMETRY = EvalGeometry(short_side=40, max_long_side=60, divisor=8)
SIZE = (64, 64)
ENCODER = ip_clip(VISION, 1)
SEEN = jnp.array([True, False, True, True, False])


tiny_visual = functools.cache(tiny_visual)


def segmenter(mesh=None, **fields) -> Segmenter:
    return Segmenter(InferenceSpec(ENCODER, SIZE, **fields), mesh)


def tiny_batch(num_examples=5, batch_size=4, **arrays) -> dict:
    """The last rows of a source of differently sized images, as its last batch."""
    source = TinySource(num_examples)
    *_, batch = NumpyBatches(
        make_eval_dataset(source, global_batch_size=batch_size, geometry=GEOMETRY)
    )
    return {key: jax.device_put(value) for key, value in (batch | arrays).items()}


def full_batch(batch_size=4, **arrays) -> dict:
    """All rows are examples; the first has no proposals, the others 1, 2, ..."""
    return tiny_batch(batch_size, batch_size, **arrays)


def probabilities_of(model: Segmenter, batch, **options) -> np.ndarray:
    return np.asarray(model.class_probabilities(tiny_visual(), tiny_text(), batch, **options))


def random_logits(num_classes, shape=(4, 3)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(*shape, num_classes)).astype(np.float32)


def test_scores_match_the_official_system():
    """From its image and mask logits to what it made of every pixel; 5e-5 of the largest."""
    encoded, expected = golden("freeseg_maft_small_encoder"), golden("freeseg_maft_small_inference")
    encoder = ip_clip(OFFICIAL_VISION, 8)
    original = tuple(int(side) for side in expected["original_size"])

    @jax.jit
    def scores_of(visual, image, mask_logits, text):
        image_size, padded = jnp.array(image.shape[:2]), jnp.array([192, 256])
        masks = jax.nn.sigmoid(resize(mask_logits, (192, 256), axes=(2, 3), align_corners=True))[0]
        images = encoder_image(normalised(image[None])[0], image_size, padded, (480, 480))[None]
        on_grid = patch_grid_masks(masks, padded, padded, padded, (30, 30))[None]
        features = encoder.encode_proposals(visual, images, on_grid)
        [probabilities] = encoder.probabilities(encoder.logits(features, text))
        sizes = image_size, image_size, jnp.array(original)
        return pixel_scores(probabilities, masks, *sizes, out_size=original)

    # the last embedding is the non-object class, which takes no part
    text = jax.device_put(expected["text_features"][:-1])
    image, logits = jax.device_put(encoded["image_uint8"]), jax.device_put(encoded["pred_masks"])
    scores = np.asarray(scores_of(official_student(), image, logits, text))
    largest = np.abs(expected["sem_seg"]).max()
    np.testing.assert_allclose(scores, expected["sem_seg"], atol=5e-5 * largest, rtol=0)


def test_labels_agree_with_the_plain_rendition():
    clip = torch_clip()
    visual = ours(clip)[1]["visual"]
    model, text, batch = segmenter(), tiny_text(), full_batch()
    pixels = model.label_maps(model.class_probabilities(visual, text, batch), batch)
    for row in range(1, 4):
        sizes = {
            key: tuple(batch[key][row].tolist())
            for key in ("image_size", "padded_size", "label_size", "proposal_grid")
        }
        (height, width), (grid_h, grid_w) = sizes["image_size"], sizes["proposal_grid"]
        count = int(batch["proposal_valid"][row].sum())
        score, labels = segment(
            clip.visual,
            torch.tensor(np.asarray(text)),
            torch.tensor(np.asarray(batch["image"][row, :height, :width])),
            torch.tensor(np.asarray(batch["proposals"][row, :count, :grid_h, :grid_w])),
            sizes["padded_size"],
            sizes["label_size"],
            clip_size=SIZE,
            start_layer=1,
        )
        native_h, native_w = sizes["label_size"]
        mine = np.asarray(pixels.score[row, :native_h, :native_w])
        np.testing.assert_allclose(mine, score, rtol=1e-4)
        np.testing.assert_array_equal(pixels.label_map[row, :native_h, :native_w], labels)
        assert np.all(np.asarray(pixels.label_map[row])[native_h:] == IGNORE)
        assert np.all(np.asarray(pixels.label_map[row])[:, native_w:] == IGNORE)


def test_padding_has_no_probabilities():
    probabilities = probabilities_of(segmenter(), batch := tiny_batch())
    valid = np.asarray(batch["proposal_valid"])
    np.testing.assert_allclose(probabilities.sum(axis=-1), valid, atol=1e-6)
    assert not valid[1:].any(), "the batch has rows that only fill it"


def test_image_without_proposals_has_the_first_class_and_score_zero():
    model, batch = segmenter(), full_batch()
    pixels = model.label_maps(jax.device_put(probabilities_of(model, batch)), batch)
    height, width = batch["label_size"][0].tolist()
    assert np.all(np.asarray(pixels.label_map[0, :height, :width]) == 0)
    assert np.all(np.asarray(pixels.score[0]) == 0)


def test_result_does_not_depend_on_the_rest_of_the_batch():
    model, batch = segmenter(), full_batch()
    others = {**batch, "image": batch["image"].at[:3].set(0)}
    larger = dict(others)
    for key, more in (("image", 64), ("label_map", 128), ("proposals", 16)):
        first = 2 if key == "proposals" else 1
        widths = [
            (0, more) if first <= axis < first + 2 else (0, 0) for axis in range(batch[key].ndim)
        ]
        larger[key] = jnp.pad(batch[key], widths, constant_values=77)
    results = []
    for same in (batch, others, larger):
        probabilities = probabilities_of(model, same)
        pixels = model.label_maps(jax.device_put(probabilities), same)
        corner = (3, slice(0, 64), slice(0, 64))
        results.append(
            (
                probabilities[3],
                np.asarray(pixels.label_map[corner]),
                np.asarray(pixels.score[corner]),
            )
        )
    for other in results[1:]:
        for mine, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_each_program_is_compiled_once_for_each_shape():
    encoder = dataclasses.replace(ENCODER, logit_scale=99.0)
    model = Segmenter(InferenceSpec(encoder, SIZE))
    programs = (module._prepare, module._encode, module._label)

    def run(batch):
        before = [program._cache_size() for program in programs]
        model.label_maps(jax.device_put(probabilities_of(model, batch)), batch)
        return [
            program._cache_size() - size for program, size in zip(programs, before, strict=True)
        ]

    batch = full_batch()
    run(batch)
    sizes = {key: batch[key] - 3 for key in ("image_size", "label_size")}
    assert run(batch | sizes) == [0, 0, 0], "another size of the same shape"
    wider = jnp.pad(batch["image"], ((0, 0), (0, 0), (0, 128), (0, 0)))
    assert run(batch | {"image": wider}) == [1, 0, 0], "another shape of images"
    wider = jnp.pad(batch["label_map"], ((0, 0), (0, 0), (0, 128)))
    assert run(batch | {"label_map": wider}) == [0, 0, 1], "another shape of label maps"


def mirrored(batch) -> dict:
    """Images that fill their arrays, mirror images of themselves, with masks likewise."""
    whole = jnp.full((4, 2), 64)
    image = batch["image"].at[:, :, 32:].set(batch["image"][:, :, 31::-1])
    masks = jax.device_put(np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), np.uint8))
    masks = masks.at[..., 8:].set(masks[..., 7::-1])
    sizes = {"image_size": whole, "padded_size": whole, "proposal_grid": whole // 4}
    return batch | sizes | {"image": image, "proposals": masks}


def test_flip_changes_nothing_of_a_symmetric_picture_but_something_of_others():
    batch = full_batch()
    for case, same in ((mirrored(batch), True), (batch, False)):
        plain, flipped = (
            probabilities_of(segmenter(), case),
            probabilities_of(segmenter(flip=True), case),
        )
        assert np.allclose(flipped, plain, atol=1e-5) == same


def test_views_are_averaged():
    batch = full_batch()
    both = probabilities_of(segmenter(scales=(1.0, 0.7)), batch)
    small = Segmenter(InferenceSpec(ENCODER, (48, 48)))  # 0.7 times 64, in whole patches of 16
    expected = (probabilities_of(segmenter(), batch) + probabilities_of(small, batch)) / 2
    np.testing.assert_allclose(both, expected, atol=1e-6)
    assert InferenceSpec(ENCODER, (72, 64), scales=(1.0, 0.1, 2.0)).view_sizes((9, 9)) == (
        (72, 64),
        (16, 16),
        (144, 128),
    )


def test_proposals_that_cover_nothing_are_left_out_on_request():
    batch = full_batch()
    faint = batch["proposals"].at[3, 1].set(127)
    batch = batch | {"proposals": faint}
    kept = probabilities_of(segmenter(), batch)
    filtered = probabilities_of(segmenter(filter_invalid=True), batch)
    assert kept[3, 1].sum() > 0.99 and not filtered[3, 1].any()
    assert kept[3, 0].any()
    np.testing.assert_array_equal(np.delete(filtered[3], 1, axis=0), np.delete(kept[3], 1, axis=0))


@pytest.mark.parametrize("num_generator_classes", [NUM_CLASSES, NUM_CLASSES + 1])
def test_ensemble_is_the_weighted_geometric_mean(num_generator_classes):
    logits = random_logits(num_generator_classes)
    batch = full_batch(class_logits=logits)
    clip = probabilities_of(segmenter(), batch)
    mixed = probabilities_of(segmenter(ensemble_weight=0.7), batch, seen=SEEN)
    generator = torch.tensor(logits).softmax(-1).numpy()[..., :NUM_CLASSES]
    expected = np.where(SEEN, generator**0.7 * clip**0.3, generator**0.3 * clip**0.7)
    expected *= np.asarray(batch["proposal_valid"])[..., None]
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-7)


def test_fc_clips_ensemble_has_an_exponent_for_seen_classes_and_one_for_others():
    logits = random_logits(NUM_CLASSES + 1)
    batch = full_batch(class_logits=logits)
    clip = probabilities_of(segmenter(), batch)
    mixed = probabilities_of(segmenter(ensemble_exponents=(0.4, 0.8)), batch, seen=SEEN)
    generator = torch.tensor(logits[..., :-1]).softmax(-1).numpy()
    powers = np.where(SEEN, generator**0.6 * clip**0.4, generator**0.2 * clip**0.8)
    nothing = torch.tensor(logits).softmax(-1).numpy()[..., -1:]
    expected = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-30) * (1 - nothing)
    expected *= np.asarray(batch["proposal_valid"])[..., None]
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="class_logits: expected 6 of 5 classes"):
        batch = full_batch(class_logits=random_logits(NUM_CLASSES))
        probabilities_of(segmenter(ensemble_exponents=(0.4, 0.8)), batch, seen=SEEN)


def test_ensemble_takes_the_generators_word_where_clip_saw_nothing():
    logits = random_logits(NUM_CLASSES)
    batch = full_batch(class_logits=logits)
    batch["proposals"] = jnp.minimum(batch["proposals"], 127)
    mixed = probabilities_of(segmenter(ensemble_weight=0.7), batch, seen=SEEN)
    generator = torch.tensor(logits).softmax(-1).numpy()
    expected = generator ** np.where(SEEN, 0.7, 0.3)
    expected *= np.asarray(batch["proposal_valid"])[..., None]
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_weight_zero_is_clip_alone():
    batch = full_batch()
    with_logits = batch | {"class_logits": jax.device_put(random_logits(NUM_CLASSES))}
    np.testing.assert_array_equal(
        probabilities_of(segmenter(ensemble_weight=0.0), with_logits, seen=SEEN),
        probabilities_of(segmenter(), batch),
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=2, model=2)])
def test_devices_share_a_batch(mesh):
    batch = full_batch(8, class_logits=random_logits(NUM_CLASSES, (8, 7)))
    results = []
    for where in (None, sharding.make_mesh(mesh)):
        model = segmenter(where, ensemble_weight=0.5, flip=True)
        probabilities = model.class_probabilities(tiny_visual(), tiny_text(), batch, SEEN)
        pixels = model.label_maps(probabilities, batch)
        results.append((probabilities, pixels))
    (expected, expected_pixels), (probabilities, pixels) = results
    rows = 8 // mesh.model
    assert len({str(shard.index) for shard in pixels.label_map.addressable_shards}) == rows
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(pixels.score, expected_pixels.score, atol=1e-4)
    agree = np.asarray(pixels.label_map) == np.asarray(expected_pixels.label_map)
    assert agree.mean() > 0.999


def test_hundreds_of_classes():
    text = jax.random.normal(jax.random.key(0), (847, VISION.embed_dim))
    model, batch = segmenter(), full_batch()
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    probabilities = model.class_probabilities(tiny_visual(), text, batch)
    pixels = model.label_maps(probabilities, batch)
    assert probabilities.shape == (4, 3, 847)
    first = np.asarray(probabilities)[1, 0]
    height, width = batch["label_size"][1].tolist()
    # one proposal, hence one class
    assert np.all(np.asarray(pixels.label_map[1, :height, :width]) == first.argmax())


def test_what_cannot_work_is_refused():
    batch, text = full_batch(), tiny_text()

    def run(text=text, seen=None, arrays=None, **fields):
        segmenter(**fields).class_probabilities(tiny_visual(), text, batch | (arrays or {}), seen)

    with pytest.raises(ValueError, match=r"text: expected class embeddings \[classes, 32\]"):
        run(text=text[:, :16])
    with pytest.raises(ValueError, match="`class_logits` in the batch, which has none; compute"):
        run(ensemble_weight=0.5, seen=SEEN)
    for width in (NUM_CLASSES - 1, NUM_CLASSES + 2):
        logits = {"class_logits": jax.device_put(random_logits(width))}
        with pytest.raises(
            ValueError, match=rf"expected 5 or 6 of 5 classes, .*, got {width}; compute"
        ):
            run(ensemble_weight=0.5, seen=SEEN, arrays=logits)
    for seen, got in ((None, "None"), (SEEN[:3], "3")):
        with pytest.raises(ValueError, match=rf"one bool for each of 5 classes, got {got}"):
            run(ensemble_weight=0.5, seen=seen)
    for scales in ((), (1.0, 0.0), (float("inf"),), (float("nan"),)):
        with pytest.raises(ValueError, match="scales: expected at least one positive"):
            InferenceSpec(ENCODER, SIZE, scales=scales)
    with pytest.raises(ValueError, match=r"ensemble_weight: expected 0 to 1, got 1\.5"):
        InferenceSpec(ENCODER, SIZE, ensemble_weight=1.5)
    for exponents in ((0.4, 1.2), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="ensemble_exponents: expected numbers from 0 to 1"):
            InferenceSpec(ENCODER, SIZE, ensemble_exponents=exponents)
    with pytest.raises(ValueError, match="logit_scale: expected a positive"):
        dataclasses.replace(ENCODER, logit_scale=0.0)
    with pytest.raises(ValueError, match="at least one patch"):
        InferenceSpec(ENCODER, (8, 8))
