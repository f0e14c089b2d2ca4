"""ConvNeXt CLIPs against what open_clip, FC-CLIP, MaskCLIP++ and Mask-Adapter compute.

tests/golden/README.md says what the files hold; none of their sizes is a published one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import MeshConfig
from maft_jax.convert import rules
from maft_jax.convert.formats import read_weights
from maft_jax.convert.open_clip_convnext import OPEN_CLIP_CONVNEXT_FORMATS
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.encoder import EncoderSettings, MaskingSpec, class_logits
from maft_jax.models.mask_pooling import hard_weights, mask_of_logits
from maft_jax.models.resize import resize
from maft_jax.models.towers.convnext import ConvNext, ConvNextConfig, DepthwiseConvolution
from maft_jax.models.towers.convnext_encoder import ConvNextEncoder
from maft_jax.runtime.sharding import batch_sharding, make_mesh, one_device_mesh, replicated
from tests.golden_files import GOLDEN

CASES = {
    "mlp": ((2, 2, 3, 2), (16, 24, 40, 64), 24, "mlp", 1e-6),
    "linear_eps5": ((1, 2, 2, 1), (8, 16, 24, 48), 20, "linear", 1e-5),
}
EVERY = 5
"""Of the large maps the files hold every fifth row and column."""


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    name: str
    config: object
    parameters: dict
    expected: dict

    @property
    def encoder(self) -> ConvNextEncoder:
        settings = EncoderSettings(
            self.config.vision.default_masking,
            one_device_mesh(),
            logit_scale=self.config.vision.default_logit_scale,
        )
        return self.config.vision.make_encoder(settings)

    @functools.cached_property
    def pixels(self):
        return self.encoder.normalise(self.expected["images_uint8"])

    @functools.cached_property
    def embeddings(self) -> dict:
        """All that our program says of the images, compiled once."""
        return _embeddings(self.encoder, self.parameters["visual"], self.pixels, self.expected)


def _embeddings(encoder, visual, pixels, expected):
    soft = dataclasses.replace(encoder, mask_pooling="soft")
    in_logits, masks = expected["mask_logits_f16"], expected["mask_uint8"]

    @jax.jit
    def compute(visual, pixels):
        apply = functools.partial(encoder.tower.apply, {"params": visual}, pixels)
        by_logits = mask_of_logits(in_logits, encoder.grid(pixels.shape[1:3]))
        return {
            "maps": apply(method="feature_maps"),
            "raw": apply(),
            "images": encoder.encode_images(visual, pixels),
            "by logits": encoder.encode_proposals(visual, pixels, by_logits),
            "both": encoder.encode_both(visual, pixels, by_logits),
            "hard": encoder.encode_proposals(visual, pixels, masks),
            "soft": soft.encode_proposals(visual, pixels, masks),
        }

    return compute(visual, pixels)


SLOW_MLP = pytest.param("mlp", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[SLOW_MLP, "linear_eps5"])
def golden(request):
    folder = GOLDEN / "convnext" / request.param
    weights = read_weights(folder)
    with np.load(folder / "expected.npz", allow_pickle=False) as arrays:
        expected = {name: jax.device_put(array) for name, array in arrays.items()}
    parameters = jax.device_put(weights.parameters())
    return Golden(request.param, weights.config, parameters, expected)


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_architecture_is_read_off_tensors_and_settings(golden):
    depths, dims, embed_dim, head, epsilon = CASES[golden.name]
    scale = min(float(golden.expected["logit_scale_exp"]), 100)
    vision = golden.config.vision
    np.testing.assert_allclose(vision.logit_scale, scale, rtol=1e-6)
    expected = ConvNextConfig(depths, dims, embed_dim, head, epsilon, 64, vision.logit_scale)
    assert vision == expected


def test_maps_of_all_stages_are_timms(golden):
    names = ("stem", "res2", "res3", "res4", "res5")
    for name, ours in zip(names, golden.embeddings["maps"], strict=True):
        ours = ours if name == "res5" else ours[:, ::EVERY, ::EVERY]
        assert_close(ours, golden.expected[f"{name}_nhwc"])


def test_embeddings_of_images_and_texts_are_open_clips(golden):
    expected = golden.expected["image_embedding_raw"]
    assert_close(golden.embeddings["raw"], expected)
    assert_close(golden.embeddings["images"], unit(expected))
    assert_close(golden.embeddings["both"][1], unit(expected))
    text = golden.config.text.encode(golden.parameters["text"], golden.expected["tokens"])
    assert_close(text, golden.expected["text_embedding"])


def test_proposals_by_three_published_rules(golden):
    grid = golden.encoder.grid(golden.pixels.shape[1:3])
    by_logits = mask_of_logits(golden.expected["mask_logits_f16"], grid)
    np.testing.assert_array_equal(by_logits, golden.expected["mask_grid_bool"])
    hard = hard_weights(golden.expected["mask_uint8"], grid)
    expected = golden.expected["hard_probability_bool"]
    np.testing.assert_array_equal(hard.reshape(expected.shape), expected)
    ours = golden.embeddings
    proposals = unit(golden.expected["proposal_embedding_raw"])
    assert_close(ours["by logits"], proposals)
    assert_close(ours["both"][0], proposals)
    assert_close(ours["hard"], golden.expected["hard_probability_embedding"])
    assert_close(ours["soft"], golden.expected["soft_embedding"])
    assert np.abs(ours["soft"] - ours["hard"]).max() > 1e-3, "the rules differ"


def test_class_logits_with_synonyms_and_void(golden):
    """Rows of classes with fewer names repeat one, which changes no maximum."""
    counts = np.asarray(golden.expected["num_synonyms"])
    rows = np.split(np.asarray(golden.expected["text_embedding"]), np.cumsum(counts)[:-1])
    rows.append(golden.expected["void_embedding"])
    text = np.stack([np.resize(names, (counts.max(), names.shape[1])) for names in rows])
    ours = class_logits(golden.encoder, golden.embeddings["by logits"], jax.device_put(text))
    expected = golden.expected["class_logits_with_void"]
    assert_close(ours / 100, expected / 100)


def scalar(encoder, visual, pixels, expected):
    """With the sizes of its terms added up, which is what its last digits are of."""
    proposals, whole = encoder.encode_both(visual, pixels, expected["mask_grid_bool"])
    terms = jnp.concatenate(
        [
            (proposals * expected["cotangent_proposals"]).ravel(),
            (whole * expected["cotangent_images"]).ravel(),
        ]
    )
    return jnp.sum(terms), jnp.sum(jnp.abs(terms))


@pytest.mark.parametrize(
    ("golden", "loop"),
    [
        ("mlp", "unrolled"),
        pytest.param("linear_eps5", "scanned", marks=pytest.mark.slow),
        pytest.param("mlp", "scanned", marks=pytest.mark.slow),
        pytest.param("linear_eps5", "unrolled", marks=pytest.mark.slow),
    ],
    indirect=["golden"],
)
def test_gradients_are_those_of_torch(golden, loop):
    """A scanned loop recomputes what is inside of its blocks."""
    encoder = golden.encoder
    if loop == "scanned":
        tower = encoder.tower.clone(loop=BlockLoop.SCANNED, remat=True)
        encoder = dataclasses.replace(encoder, tower=tower)
    visual, expected = golden.parameters["visual"], golden.expected
    function = jax.jit(
        jax.value_and_grad(
            lambda visual: scalar(encoder, visual, golden.pixels, expected), has_aux=True
        )
    )
    (value, size), gradient = function(visual)
    np.testing.assert_allclose(value, expected["scalar"], atol=1e-6 * float(size), rtol=0)
    layout = next(x for x in OPEN_CLIP_CONVNEXT_FORMATS if not x.refuses(golden.config))
    gradient = rules.to_foreign({"visual": gradient}, layout.rules)
    names = [name for name in expected if name.startswith("grad/")]
    assert len(names) == 6
    for name in names:
        ours, theirs = gradient[name.removeprefix("grad/")], expected[name]
        assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max(), name


def test_devices_that_share_images_do_not_count_a_kernels_gradient_twice():
    """Which jax 0.10.2 does with the convolution as it is, where mesh.model is 2."""
    config = ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8), 8, "linear", image_size=32)
    mesh = make_mesh(MeshConfig(fsdp=2, model=2))
    assert config.make_encoder(EncoderSettings(config.default_masking, mesh)).tower.mesh is mesh
    maps = jax.random.normal(jax.random.key(0), (8, 9, 6, 8))
    module = DepthwiseConvolution(jnp.float32)
    parameters = module.init(jax.random.key(1), maps)

    def gradient(module, **shardings):
        def loss(parameters, maps):
            return jnp.sum(jnp.sin(module.apply(parameters, maps)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)), **shardings)(parameters, maps)

    expected = gradient(module)
    shared = DepthwiseConvolution(jnp.float32, mesh)
    ours = gradient(shared, in_shardings=(replicated(mesh), batch_sharding(mesh)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), ours, expected
    )


@pytest.mark.parametrize("golden", [SLOW_MLP], indirect=True)
def test_learned_masks_are_pooled_map_by_map(golden):
    """With the maps that Mask-Adapter drew, read by its own rule."""
    drawn = golden.expected["mask_adapter_maps"]
    seen = []

    def draw(cells, masks):
        seen.append(cells)
        maps = drawn.reshape(2, -1, masks.shape[1], 4)
        return jax.nn.softmax(jax.nn.log_sigmoid(maps), axis=1).transpose(0, 2, 3, 1)

    masks = golden.expected["mask_grid_bool"]
    ours, cells = jax.jit(
        lambda visual: (golden.encoder.encode_drawn(visual, golden.pixels, masks, draw, 1), seen[0])
    )(golden.parameters["visual"])
    assert_close(cells, golden.expected["cell_embedding_raw"])
    assert_close(ours, unit(golden.expected["mask_adapter_embedding_raw"]))


SMALL = ConvNextConfig((1, 1, 1, 1), (8, 8, 8, 8), 12)


@functools.cache
def small_visual():
    return SMALL.init(jax.random.key(0))


def make_small(**masking) -> ConvNextEncoder:
    masking = MaskingSpec(**{"mask_start_layer": 0, "image_size": 64} | masking)
    return SMALL.make_encoder(EncoderSettings(masking, one_device_mesh()))


def test_images_are_padded_to_whole_cells_after_normalisation():
    encoder = make_small()
    pixels = jax.random.normal(jax.random.key(1), (1, 75, 40, 3))
    masks = jnp.zeros((1, 2, 75, 40)).at[:, 0, :40, 20:].set(1).at[:, 1].set(1)
    padded = jnp.pad(pixels, ((0, 0), (0, 21), (0, 24), (0, 0)))
    outside = jnp.pad(masks, ((0, 0), (0, 0), (0, 21), (0, 24)))
    on_grid = jnp.zeros((1, 1, 3, 2)).at[..., :2, 0].set(1)
    at_pixels = jnp.zeros((1, 1, 96, 64)).at[..., :64, :32].set(1)

    def draw(cells, masks):
        finer = resize(masks, (4 * 3, 4 * 2), axes=(2, 3))
        return 1e-3 + finer.reshape(1, 2, 3, 4, 2, 4).mean((3, 5)).reshape(1, 2, 1, 6)

    @jax.jit
    def embeddings(visual):
        both = encoder.encode_both(visual, pixels, masks)
        of_pixels = encoder.encode_proposals(visual, padded, outside)
        return (
            (both[0], of_pixels),
            (encoder.encode_proposals(visual, pixels, masks), of_pixels),
            (both[1], encoder.encode_images(visual, pixels)),
            (
                encoder.encode_proposals(visual, pixels, on_grid),
                encoder.encode_proposals(visual, padded, at_pixels),
            ),
            (
                encoder.encode_drawn(visual, pixels, masks, draw, 4),
                encoder.encode_drawn(visual, padded, outside, draw, 4),
            ),
        )

    for ours, expected in embeddings(small_visual()):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_empty_masks_of_random_weights_are_zeros_with_finite_gradients():
    encoder = make_small()
    pixels = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))

    def sum_of_embeddings(visual):
        return jnp.sum(encoder.encode_proposals(visual, pixels, jnp.zeros((1, 1, 2, 2))))

    value, gradient = jax.jit(jax.value_and_grad(sum_of_embeddings))(small_visual())
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_products_are_in_the_dtype_that_is_asked_for():
    tower = ConvNext(SMALL, dtype=jnp.bfloat16)
    variables = {"params": jax.eval_shape(SMALL.init, jax.random.key(0))}
    pixels = jnp.zeros((1, 32, 32, 3))
    maps = jax.eval_shape(lambda v: tower.apply(v, pixels, method="feature_maps"), variables)
    assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(lambda v: tower.apply(v, pixels), variables).dtype == jnp.float32


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        ({"mask_start_layer": 8}, "has no meaning for this image tower"),
        ({"image_size": 100}, "expected a multiple of 32"),
        ({"mask_pooling": "learned"}, "mask_pooling: expected one of"),
    ],
)
def test_what_has_no_meaning_is_refused(masking, message):
    with pytest.raises(ValueError, match=message):
        make_small(**masking)


def test_images_smaller_than_a_cell_are_refused():
    with pytest.raises(ValueError, match="expected at least one cell of 32x32"):
        make_small().grid((31, 64))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depths": (1, 1)}, "depths: expected four positive numbers"),
        ({"dims": (8, 0, 8, 8)}, "dims: expected four positive numbers"),
        ({"head": "none"}, "head: expected one of"),
    ],
)
def test_impossible_architectures_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **sizes)
