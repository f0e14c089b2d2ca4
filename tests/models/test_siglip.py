"""SigLIP against transformers' SiglipModel and what its head gives for keys that are masked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import ModelConfig
from maft_jax.convert import rules
from maft_jax.convert.formats import read_weights
from maft_jax.convert.transformers_siglip import RULES
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import EncoderSettings, ImageArchitecture, ImageEncoder, MaskingSpec
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.text.siglip_text import SigLipTextTransformer
from maft_jax.runtime import tree_rules
from maft_jax.runtime.sharding import one_device_mesh
from tests.siglip_files import GOLDEN

EXPECTED = np.load(GOLDEN / "expected.npz")
IMAGES = jax.device_put(EXPECTED["images_uint8"])
MASKS = jax.device_put(EXPECTED["mask_grid_bool"])
NOT_EMPTY = [0, 1, 2, 3, 4, 6]


@pytest.fixture(scope="module")
def golden():
    """Architecture, parameters, and an encoder as training has it."""
    weights = read_weights(GOLDEN / "transformers")
    return weights.config, weights.parameters(), encoder_of(weights.config.vision)


def encoder_of(vision, **settings):
    masking = settings.pop("masking", vision.default_masking)
    scale = vision.default_logit_scale
    return vision.make_encoder(
        EncoderSettings(masking, one_device_mesh(), logit_scale=scale, **settings)
    )


@pytest.fixture(scope="module")
def read(golden):
    """Proposals and whole images of the golden file, in one program."""
    _, parameters, encoder = golden

    @jax.jit
    def both(visual, images, masks):
        pixels = encoder.normalise(images)
        patches = encoder.tower.apply({"params": visual}, pixels, method="patches")
        return patches, encoder.encode_both(visual, pixels, masks)

    return both(parameters["visual"], IMAGES, MASKS)


@pytest.fixture(scope="module")
def texts(golden):
    config, parameters, _ = golden
    return config.text.encode(parameters["text"], EXPECTED["tokens"])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_it_keeps_to_the_interface(golden):
    assert isinstance(golden[0].vision, ImageArchitecture)
    assert isinstance(golden[2], ImageEncoder)
    hash(golden[2])


def test_embeddings_are_those_of_transformers(read, texts):
    patches, (proposals, whole) = read
    assert_close(patches, EXPECTED["patch_tokens"])
    assert_close(whole, EXPECTED["image_embedding"])
    assert_close(texts, EXPECTED["text_embedding"])
    assert_close(proposals[:, NOT_EMPTY], EXPECTED["masked_pooling"][:, NOT_EMPTY])
    assert_close(proposals[:, 6], whole)
    empty = unit(EXPECTED["empty_mask_zero_attention_raw"])
    assert_close(proposals[:, 5], np.broadcast_to(empty, whole.shape))


def test_probabilities_are_those_of_the_weights_own_scale_and_bias(golden, read, texts):
    config, _, encoder = golden
    logits = encoder.logits(read[1][1], texts)
    expected = EXPECTED["logits_per_image"]
    assert_close(logits / 30, expected / 30)
    np.testing.assert_allclose(config.vision.logit_scale, EXPECTED["logit_scale_exp"], rtol=1e-6)
    assert_close(encoder.probabilities(logits), jax.nn.softmax(expected, axis=-1))
    model = ModelConfig(
        mask_start_layer=0, image_size=40, mask_pooling="hard", compute_dtype="float32"
    )
    sigmoid = make_encoder(
        model,
        config.vision,
        one_device_mesh(),
        config.vision.default_logit_scale,
        "sigmoid",
    )
    assert_close(sigmoid.probabilities(logits), 1 / (1 + np.exp(-expected)))
    with pytest.raises(ValueError, match="needs the bias that SigLIP's weights have"):
        make_encoder(model, CLIP_SIZES["tiny"].vision, one_device_mesh(), 100.0, "sigmoid")


def test_another_size_has_positions_resized_as_in_transformers(golden):
    _, parameters, encoder = golden
    pixels = encoder.normalise(jax.device_put(EXPECTED["other_images_uint8"]))
    found = jax.jit(encoder.encode_images)(parameters["visual"], pixels)
    assert_close(found, EXPECTED["other_image_embedding"])


@pytest.mark.slow
def test_exact_gelu_is_another_tower(golden):
    config, parameters, _ = golden
    exact = dataclasses.replace(config.text, activation="gelu")
    found = exact.encode(parameters["text"], EXPECTED["tokens"])
    assert_close(found, EXPECTED["text_embedding_exact_gelu"])
    vision = dataclasses.replace(config.vision, activation="gelu")
    encoder = encoder_of(vision)
    pixels = encoder.normalise(IMAGES)
    found = jax.jit(encoder.encode_images)(parameters["visual"], pixels)
    assert_close(found, EXPECTED["image_embedding_exact_gelu"])
    assert np.abs(found - EXPECTED["image_embedding"]).max() > 1e-5


def compare_gradients(gradients, prefix):
    """Named as in transformers; 2e-5 of the largest entry."""
    found = rules.to_foreign(gradients, RULES)
    for key in (key for key in EXPECTED.files if key.startswith(prefix)):
        expected = EXPECTED[key]
        bound = 2e-5 * np.abs(expected).max()
        name = key.removeprefix(prefix)
        np.testing.assert_allclose(found[name], expected, atol=bound, rtol=0, err_msg=name)


def test_gradients_of_the_sigmoid_loss(golden):
    config, parameters, encoder = golden
    text_tower = SigLipTextTransformer(config.text)

    @jax.jit
    def loss(parameters):
        rows = encoder.encode_images(parameters["visual"], encoder.normalise(IMAGES))
        texts = text_tower.apply({"params": parameters["text"]}, EXPECTED["tokens"][: len(IMAGES)])
        scale, bias = jnp.exp(parameters["logit_scale"]), parameters["logit_bias"]
        logits = scale * jnp.matmul(rows, texts.T, precision="highest") + bias
        signs = 2 * jnp.eye(len(IMAGES)) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum(axis=1).mean()

    value, gradients = jax.value_and_grad(loss)(parameters)
    np.testing.assert_allclose(value, EXPECTED["sigmoid_loss"], rtol=1e-6)
    compare_gradients(gradients, "grad/")


def test_gradients_of_masked_pooling(golden):
    _, parameters, encoder = golden
    masks = MASKS[:, np.array(NOT_EMPTY)]
    cotangent = EXPECTED["cotangent_proposals"][:, NOT_EMPTY]

    @jax.jit
    def scalar(visual):
        pixels = encoder.normalise(IMAGES)
        return jnp.sum(encoder.encode_proposals(visual, pixels, masks) * cotangent)

    value, gradients = jax.value_and_grad(scalar)(parameters["visual"])
    np.testing.assert_allclose(value, EXPECTED["masked_scalar_without_empty"], rtol=1e-5)
    compare_gradients({**parameters, "visual": gradients}, "masked_grad/")


@pytest.mark.slow
def test_random_weights_with_empty_masks_have_finite_gradients():
    """All biases are zero, and so is an empty mask's embedding."""
    vision = CLIP_SIZES["siglip_tiny-random"].vision
    visual, encoder = vision.init(jax.random.key(0)), encoder_of(vision)
    pixels = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    masks = jnp.zeros((1, 2, 4, 4))

    def total(visual):
        return jnp.sum(jnp.sin(encoder.encode_proposals(visual, pixels, masks) + 1))

    gradients = jax.jit(jax.grad(total))(visual)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_start_layer_and_unknown_rules_are_refused(golden):
    vision = golden[0].vision
    with pytest.raises(ValueError, match=r"mask_start_layer=8: has no meaning .* pooled after"):
        encoder_of(vision, masking=MaskingSpec(8, 40))
    with pytest.raises(ValueError, match="mask_pooling: expected one of"):
        encoder_of(vision, masking=MaskingSpec(0, 40, "learned"))
    with pytest.raises(ValueError, match="image of 7x7 pixels"):
        encoder_of(vision, masking=MaskingSpec(0, 7))


def test_trainable_parameters_are_attention_and_its_norms(golden):
    config, parameters, _ = golden
    chosen = tree_rules.flatten(
        tree_rules.select(config.vision.default_trainable, parameters["visual"], where="test")
    )
    left = tree_rules.flatten(parameters["visual"]).keys() - chosen.keys()
    assert len(chosen) == 3 * 8 + 2 + 6  # blocks, ln_post, head
    assert {path.rsplit("/", 1)[0] for path in left if "mlp" not in path} == {
        "patch_kernel", "patch_bias", "position_embedding", "head"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"remat": True}, {"scan_blocks": True}, {"dtype": "bfloat16"}]
)
def test_ways_of_computing_agree(golden, read, settings):
    config, parameters, plain = golden
    encoder = encoder_of(config.vision, **settings)
    assert (encoder.tower.loop is BlockLoop.SCANNED) == ("scan_blocks" in settings)
    pixels = plain.normalise(IMAGES)
    masks = MASKS

    def total(encoder, visual):
        proposals, whole = encoder.encode_both(visual, pixels, masks)
        return jnp.sum(jnp.sin(proposals)) + jnp.sum(jnp.cos(whole)), (proposals, whole)

    def run(encoder):
        function = jax.value_and_grad(lambda visual: total(encoder, visual), has_aux=True)
        return jax.jit(function)(parameters["visual"])

    (_, found), gradients = run(encoder)
    (_, expected), expected_gradients = run(plain)
    loose = 2e-2 if settings.get("dtype") == "bfloat16" else 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=loose), found, expected)
    if loose == 1e-5:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-7),
            gradients,
            expected_gradients,
        )
