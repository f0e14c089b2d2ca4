"""EVA-02's towers against timm, open_clip and MaskCLIP++ (tests/golden/README.md says of what)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.convert.formats import read_weights
from maft_jax.convert.rules import to_foreign
from maft_jax.models.encoder import EncoderSettings, MaskingSpec
from maft_jax.models.preprocess import normalised, soft_patch_mask
from maft_jax.runtime.sharding import one_device_mesh
from tests.golden_files import GOLDEN

TOKENS = 5e-5
"""Of values of size 2 to 4, absolute."""


class Case:
    """Weights, what timm and the others made of them, and our encoders."""

    def __init__(self, folder):
        about = json.loads((folder / "config.json").read_text())
        arrays = np.load(folder / "expected.npz")
        pixels = (n for n in arrays if n.endswith("_uint8"))
        self.expected = dict(arrays) | {name: jax.device_put(arrays[name]) for name in pixels}
        heads = about["num_heads"]
        width = len(self.expected["class_token"][0])
        self.weights = read_weights(
            folder / "open_clip_model.safetensors", head_width=width // heads
        )
        self.config = self.weights.config
        self.parameters = self.weights.parameters()
        self.visual = self.parameters["visual"]
        self.first_masked = about["mask_from_block"] - 1

    def encoder(self, rule="maft", start=None):
        start = self.first_masked if start is None else start
        masking = MaskingSpec(start, self.config.vision.image_size, mask_rule=rule)
        settings = EncoderSettings(masking, one_device_mesh(), attention="xla")
        return self.config.vision.make_encoder(settings)

    def foreign(self, gradients):
        """Gradients under open_clip's names."""
        from maft_jax.convert.eva02 import EVA02_OPEN_CLIP

        return to_foreign(gradients, EVA02_OPEN_CLIP.table(self.config))

    def with_mask_scales(self):
        rows = self.expected["maskclippp/mask_logit_scale"]
        visual = dict(self.visual)
        for row, scales in enumerate(rows):  # the first row is the last block's
            name = f"blocks_{self.config.vision.layers - 1 - row}"
            visual[name] = {**visual[name], "mask_logit_scale": scales}
        return visual


@pytest.fixture(scope="module", params=["patch16", pytest.param("patch14", marks=pytest.mark.slow)])
def case(request):
    return Case(GOLDEN / "eva02" / request.param)


def close_direction(found, raw):
    """Unit rows against rows that are not."""
    norm = np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, raw / norm, rtol=0, atol=TOKENS / norm.min())


def close_gradient(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def all_tokens(tower, images):
    """After the last layer and LayerNorm."""
    tokens = tower.run(tower.embed(images), 0, tower.config.layers, tower.grid_of(images))
    return tower.ln_post(tokens)


def test_tokens_are_timms(case):
    images, tower = normalised(case.expected["images_uint8"]), case.encoder().tower
    found = jax.jit(lambda v: tower.apply({"params": v}, images, method=all_tokens))(case.visual)
    np.testing.assert_allclose(found[:, 0], case.expected["class_token"], rtol=0, atol=TOKENS)
    patches = case.expected["patch_tokens"]
    np.testing.assert_allclose(found[:, 1:].reshape(patches.shape), patches, rtol=0, atol=TOKENS)


def test_logits_and_gradients_are_open_clips(case):
    expected, encoder = case.expected, case.encoder()
    images = normalised(expected["images_uint8"])

    def loss_and_embeddings(parameters):
        image = encoder.encode_images(parameters["visual"], images)
        text = case.config.text.encode(parameters["text"], expected["tokens"])
        logits = jnp.exp(parameters["logit_scale"]) * image @ text.T
        pair = logits[:, :2]
        rows, columns = (jnp.diag(jax.nn.log_softmax(pair, axis)).mean() for axis in (1, 0))
        return -(rows + columns) / 2, (image, text, logits)

    run = jax.jit(jax.value_and_grad(loss_and_embeddings, has_aux=True))
    (loss, (image, text, logits)), gradients = run(case.parameters)
    close_direction(image, expected["image_embedding_raw"])
    close_direction(text, expected["text_embedding_raw"])
    largest = np.abs(expected["logits_per_image"]).max()
    np.testing.assert_allclose(logits, expected["logits_per_image"], rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(loss, expected["contrastive_loss"], rtol=1e-5)
    found = case.foreign(gradients)
    names = [name for name in expected if name.startswith("grad/")]
    assert len(names) == 4
    for name in names:
        close_gradient(found[name.removeprefix("grad/")], expected[name])


@pytest.mark.slow
def test_soft_masks_of_another_size_are_maskclippps_with_gradients(case):
    expected, encoder = case.expected, case.encoder("maskclippp")
    images = normalised(expected["other_images_uint8"])
    masks = expected["maskclippp/masks_uint8"][None]

    def total(visual):
        found, whole = encoder.encode_both(visual, images, masks)
        return jnp.sum(found[0] * expected["cotangent_masks"]), (found[0], whole)

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (scalar, (found, whole)), gradients = run(case.with_mask_scales())
    close_direction(found, expected["maskclippp/mask_embedding_raw"])
    close_direction(whole, expected["maskclippp/image_embedding_raw"])
    np.testing.assert_allclose(scalar, expected["maskclippp/scalar"], rtol=1e-5)
    areas = soft_patch_mask(masks, encoder.grid(images.shape[1:3])).sum(-1)[0]
    np.testing.assert_allclose(areas, expected["maskclippp/areas"], rtol=1e-5)
    scales = [gradients[name]["mask_logit_scale"] for name in masked_blocks(case)]
    close_gradient(np.stack(scales[::-1]), expected["maskclippp/grad/mask_logit_scale"])
    found = case.foreign({"visual": gradients})
    names = [name for name in expected if name.startswith("maskclippp/grad/visual")]
    assert len(names) == 4
    for name in names:
        close_gradient(found[name.removeprefix("maskclippp/grad/")], expected[name])


def masked_blocks(case):
    return [f"blocks_{i}" for i in range(case.first_masked, case.config.vision.layers)]


def test_soft_masks_of_a_second_image_start_from_its_own_class_token(case):
    expected, encoder = case.expected, case.encoder("maskclippp")
    images = normalised(expected["images_uint8"])
    masks = jnp.stack([expected["maskclippp_native/masks_uint8"]] * 2)
    found = jax.jit(encoder.encode_proposals)(case.with_mask_scales(), images, masks)
    close_direction(found[0], expected["maskclippp_native/mask_embedding_raw"])
    close_direction(found[1], expected["maskclippp_native/second_image_alone_raw"])
