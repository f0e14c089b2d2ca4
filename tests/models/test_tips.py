"""TIPS's towers against scenic and PyTorch (tests/golden/README.md says of what)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.convert.formats import FORMATS, read_weights
from maft_jax.convert.rules import to_foreign
from maft_jax.models.encoder import EncoderSettings, MaskingSpec
from maft_jax.models.text.tips_text import TipsTextTransformer
from maft_jax.runtime.sharding import one_device_mesh
from tests.golden_files import GOLDEN

TOKENS = 2e-5
"""Of values of size 3, absolute."""
LAYOUTS = {"scenic": "tips", "torch": "tips_torch"}


class Case:
    """Weights of one layout, what its library made of them, and our encoders."""

    def __init__(self, folder, layout):
        self.layout = layout
        arrays = np.load(folder / "expected.npz")
        self.expected = {
            name: jax.device_put(x) if name.endswith("_uint8") else x for name, x in arrays.items()
        }
        stated = {"head_width": 16} if layout == "torch" else {}
        self.weights = read_weights(folder / f"{layout}_vision.npz", **stated)
        self.config = self.weights.config
        self.parameters = jax.device_put(self.weights.parameters())

    def encoder(self, class_token=0):
        vision = self.config.vision
        masking = MaskingSpec(1, vision.image_size, "hard", "shared_patches", class_token)
        settings = EncoderSettings(masking, one_device_mesh(), attention="xla")
        return vision.make_encoder(settings)

    @functools.cached_property
    def tokens(self):
        """The compiled tower, of uint8 images."""
        encoder = self.encoder()
        run = functools.partial(encoder.tower.apply, method=all_tokens)
        return jax.jit(lambda images: run({"params": self.parameters["visual"]}, images))

    def read(self, images):
        return self.tokens(self.encoder().normalise(images))


@pytest.fixture(
    scope="module",
    params=[
        ("mlp", "scenic"),
        pytest.param(("mlp", "torch"), marks=pytest.mark.slow),
        pytest.param(("swiglu", "scenic"), marks=pytest.mark.slow),
        ("swiglu", "torch"),
    ],
    ids="_".join,
)
def case(request):
    name, layout = request.param
    return Case(GOLDEN / "tips" / name, layout)


def all_tokens(tower, images):
    """After the last layer and LayerNorm."""
    tokens = tower.run(tower.embed(images), 0, tower.config.layers, tower.grid_of(images))
    return tower.ln_post(tokens)


def check_tokens(case, found, group):
    classes, patches = (
        case.expected[f"{group}/{name}"] for name in ("class_tokens_raw", "patch_tokens")
    )
    np.testing.assert_allclose(found[:, :2], classes, rtol=0, atol=TOKENS)
    np.testing.assert_allclose(found[:, 2:].reshape(patches.shape), patches, rtol=0, atol=TOKENS)


def test_tokens_are_those_of_the_library(case):
    check_tokens(case, case.read(case.expected["images_uint8"]), case.layout)


def test_positions_of_another_size_are_resized_as_there(case):
    check_tokens(case, case.read(case.expected["other_images_uint8"]), f"other_{case.layout}")


def test_sides_between_multiples_are_padded_as_in_flax(case):
    if case.layout == "scenic":
        check_tokens(case, case.read(case.expected["padded_images_uint8"]), "padded_scenic")
    height, width = case.expected["padded_images_uint8"].shape[1:3]
    with pytest.raises(ValueError, match="whole patches of 14"):
        case.encoder().grid((height, width))


@pytest.mark.slow
def test_texts_are_means_of_real_tokens(case):
    tower, tokens = TipsTextTransformer(case.config.text), case.expected["token_ids"]
    variables = {"params": case.parameters["text"]}
    np.testing.assert_array_equal(tokens == 0, case.expected["paddings"])
    run = jax.jit(functools.partial(tower.apply, method=tower.mean_of_tokens))
    expected = case.expected[f"{case.layout}/text_raw"]
    np.testing.assert_allclose(run(variables, tokens), expected, rtol=0, atol=TOKENS)
    short = run(variables, tokens[:1, :10])
    np.testing.assert_allclose(short, expected[:1], rtol=0, atol=TOKENS)
    assert not np.asarray(run(variables, np.zeros_like(tokens))).any()


@pytest.mark.slow
def test_logits_and_gradients_are_those_of_the_library(case):
    expected, layout = case.expected, case.layout
    images = case.encoder().normalise(expected["images_uint8"])

    def loss_and_logits(parameters):
        first, second = (
            case.encoder(number).encode_images(parameters["visual"], images) for number in (0, 1)
        )
        text = case.config.text.encode(parameters["text"], expected["token_ids"])
        logits = [jnp.exp(parameters["logit_scale"]) * x @ text.T for x in (first, second)]
        pair = logits[0][:, :2]
        rows, columns = (jnp.diag(jax.nn.log_softmax(pair, axis)).mean() for axis in (1, 0))
        return -(rows + columns) / 2, logits

    run = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    (loss, logits), gradients = run(case.parameters)
    for found, name in zip(logits, ("first", "second"), strict=True):
        wanted = expected[f"{layout}/logits_{name}"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(loss, expected[f"{layout}/contrastive_loss"], rtol=1e-5)
    close_gradient(  # with respect to the divisor, of which the parameter is minus the logarithm
        -gradients["logit_scale"] / expected["temperature"], expected[f"{layout}/grad/temperature"]
    )
    table = FORMATS[LAYOUTS[layout]].table(case.config)
    found = to_foreign({"visual": gradients["visual"], "text": gradients["text"]}, table)
    names = [name for name in expected if name.startswith(f"{layout}/grad/") if "temp" not in name]
    assert len(names) == 3
    for name in names:
        close_gradient(found[name.split("/", 3)[3]], expected[name])


def close_gradient(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
