"""big_vision's image towers: its function, its bits, and clear words about what is none of ours."""

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maft_jax.convert import rules
from maft_jax.convert.big_vision import ARCHITECTURE, BIG_VISION_FORMATS
from maft_jax.convert.formats import FORMATS, ClipWeights, read_weights, write_weights
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.towers.clip_vit import VisionTransformer
from maft_jax.weights import open_weights
from tests.convert.big_vision_reference import BigVisionViT, embed, random_tensors

pytestmark = pytest.mark.slow

SIZE = 32
LAYOUTS = {
    "big_vision": {},
    "big_vision_headless": {"out_dim": None},
    "big_vision_stacked": {"stacked": True},
    "big_vision_stacked_headless": {"stacked": True, "out_dim": None},
}


@pytest.fixture(params=LAYOUTS)
def case(request, tmp_path):
    """Format, reference, its tensors, and the file that holds them."""
    vit = BigVisionViT(**LAYOUTS[request.param])
    tensors = random_tensors(vit, SIZE)
    np.savez(tmp_path / "vit.npz", **tensors)
    return request.param, vit, tensors, tmp_path / "vit.npz"


def pixels() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)


def clip_normalised(images) -> jax.Array:
    return jax.device_put((images - PIXEL_MEAN) / PIXEL_STD)


def test_layout_and_architecture_are_recognised(case):
    name, vit, _, path = case
    weights = read_weights(path)
    vision = weights.config.vision
    assert weights.format_name == name and weights.config.text is None and not weights.ignored
    assert (vision.width, vision.layers, vision.head_width, vision.mlp_width) == (48, 3, 12, 80)
    assert (vision.patch_size, vision.image_size) == (8, SIZE)
    assert vision.embed_dim == (vit.out_dim or 48)
    assert {field: getattr(vision, field) for field in ARCHITECTURE} == ARCHITECTURE


def test_features_are_those_of_the_reference(case):
    _, vit, tensors, path = case
    weights = read_weights(path)
    expected = embed(vit, tensors, pixels() / 127.5 - 1)
    tower = VisionTransformer(weights.config.vision)
    found = jax.jit(tower.apply)(
        {"params": weights.parameters()["visual"]}, clip_normalised(pixels())
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, "the images matter"


def test_gradients_are_those_of_the_reference(case):
    name, vit, tensors, path = case
    weights = read_weights(path)
    rng = np.random.default_rng(2)
    direction = rng.normal(size=(2, weights.config.vision.embed_dim)).astype(np.float32)
    tower = VisionTransformer(weights.config.vision)

    def theirs(tensors):
        return jnp.sum(embed(vit, tensors, pixels() / 127.5 - 1) * direction)

    def ours(visual):
        return jnp.sum(tower.apply({"params": visual}, clip_normalised(pixels())) * direction)

    expected = jax.jit(jax.grad(theirs))(tensors)
    gradient = jax.jit(jax.grad(ours))(weights.parameters()["visual"])
    positions = np.array(gradient["position_embedding"])
    positions[0] = 0  # the class token's, which big_vision does not have
    gradient = gradient | {"position_embedding": positions}
    if vit.out_dim is None:
        gradient = gradient | {"proj": np.eye(48, dtype=np.float32)}  # not theirs either
    found = rules.to_foreign({"visual": gradient}, FORMATS[name].rules)
    assert set(found) == set(expected)
    for key, value in expected.items():
        largest = np.abs(value).max()
        if key.endswith("key/bias"):  # zero but for rounding: softmax ignores it
            largest = np.abs(expected[key.replace("key", "query")]).max()
        np.testing.assert_allclose(found[key], value, atol=1e-5 * largest, rtol=0, err_msg=key)


def test_round_trip_is_identical_bit_for_bit(case, tmp_path):
    name, _, tensors, path = case
    write_weights(read_weights(path), tmp_path / "back.npz", name)
    with np.load(tmp_path / "back.npz", allow_pickle=False) as back:
        assert set(back.files) == set(tensors)
        for key, value in tensors.items():
            assert back[key].dtype == value.dtype and back[key].shape == value.shape, key
            assert back[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("head", [24, None])
def test_per_block_and_stacked_layouts_turn_into_each_other(tmp_path, head):
    ending = "" if head else "_headless"
    stacked = random_tensors(BigVisionViT(stacked=True, out_dim=head), SIZE)
    np.savez(tmp_path / "stacked.npz", **stacked)
    weights = read_weights(tmp_path / "stacked.npz")
    write_weights(weights, tmp_path / "blocks.npz", f"big_vision{ending}")
    with np.load(tmp_path / "blocks.npz") as blocks:
        for key in ("LayerNorm_1/scale", "MultiHeadDotProductAttention_0/value/kernel"):
            name = f"params/img/Transformer/encoderblock_2/{key}"
            expected = stacked[f"params/img/Transformer/encoderblock/{key}"][2]
            np.testing.assert_array_equal(blocks[name], expected)
    again = read_weights(tmp_path / "blocks.npz")
    assert again.config == weights.config
    write_weights(again, tmp_path / "again.npz", f"big_vision_stacked{ending}")
    with np.load(tmp_path / "again.npz") as back:
        assert set(back.files) == set(stacked)
        assert all(back[key].tobytes() == value.tobytes() for key, value in stacked.items())


def test_bfloat16_is_read_exactly_and_written_back_as_it_was(tmp_path):
    tensors = random_tensors(BigVisionViT(), SIZE)
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    np.savez(tmp_path / "half.npz", **tensors)
    weights = read_weights(tmp_path / "half.npz")
    name = "params/img/head/kernel"
    found = weights.parameters()["visual"]["proj"]
    np.testing.assert_array_equal(found, tensors[name].astype(np.float32))
    write_weights(weights, tmp_path / "back.npz", "big_vision", dtype="source")
    with np.load(tmp_path / "back.npz") as back:
        assert back[name].tobytes() == tensors[name].tobytes()


def test_text_tower_and_trainer_are_left_out_with_a_reason(tmp_path):
    others = {
        "params/t": np.ones(1, np.float32),
        "params/b": np.ones(1, np.float32),
        "params/txt/Embed_0/embedding": np.ones((5, 4), np.float32),
        "opt/0/count": np.ones((), np.int32),
    }
    np.savez(tmp_path / "vit.npz", **random_tensors(BigVisionViT(), SIZE), **others)
    weights = read_weights(tmp_path / "vit.npz")
    assert set(weights.ignored) == set(others)
    assert "no causal mask" in weights.ignored["params/txt/Embed_0/embedding"]
    with pytest.raises(ValueError, match="an image tower without a text tower"):
        open_weights(tmp_path / "vit.npz", needs_text=True)


IMAGE = "params/img/"


def without(*names):
    return lambda tensors: {
        key: value
        for key, value in tensors.items()
        if not any(key.startswith(IMAGE + name) for name in names)
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: without("cls")(t) | {f"{IMAGE}MAPHead_0/probe": np.ones((1, 1, 48))},
            "cannot represent: it pools with an attention head",
        ),
        (without("cls"), r"cannot represent: it has no class token \(pool_type='gap'"),
        (without("pos_embedding"), r"no learned position embedding \(posemb='sincos2d'\)"),
        (
            lambda t: t | {f"{IMAGE}pre_logits/kernel": np.ones((48, 48), np.float32)},
            r"tanh layer before its head \(rep_size\)",
        ),
        (
            without("Transformer/encoderblock_1/LayerNorm_0/scale"),
            r"1 missing: params/img/Transformer/encoderblock_1/LayerNorm_0/scale",
        ),
        (without("Transformer/encoderblock_1/"), "16 missing: "),
        (without("embedding/bias"), "1 missing: params/img/embedding/bias"),
        (without("head/bias"), "1 missing: params/img/head/bias"),
        (
            lambda t: t | {f"{IMAGE}extra": np.ones(3, np.float32)},
            "1 unknown: params/img/extra",
        ),
        (
            lambda t: t | {f"{IMAGE}pos_embedding": np.ones((1, 15, 48), np.float32)},
            "has 15 rows; expected those of a square grid",
        ),
        (
            lambda t: (
                t | {(k := f"{IMAGE}Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"): t[k].T}
            ),
            r"wrong shape: params/img/\S+Dense_0/kernel \(80, 48\)",
        ),
        (
            lambda t: t | {(k := f"{IMAGE}embedding/kernel"): t[k].astype(np.float64)},
            "1 of wrong dtype: params/img/embedding/kernel float64",
        ),
    ],
)
def test_other_towers_are_refused_by_name(tmp_path, change, message):
    tensors = change(random_tensors(BigVisionViT(), SIZE))
    np.savez(tmp_path / "vit.npz", **tensors)
    with pytest.raises(ValueError, match=rf"vit\.npz: .*{message}"):
        read_weights(tmp_path / "vit.npz")


def test_array_of_objects_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    tensors = random_tensors(BigVisionViT(), SIZE)
    tensors[f"{IMAGE}cls"] = np.array([Bomb()], object)
    np.savez(tmp_path / "vit.npz", **tensors)
    assert os.listdir(tmp_path) == ["vit.npz"]
    with pytest.raises(ValueError, match=r"vit\.npz: .*'params/img/cls' holds Python objects"):
        read_weights(tmp_path / "vit.npz")
    assert os.listdir(tmp_path) == ["vit.npz"]


@pytest.mark.parametrize("format", BIG_VISION_FORMATS, ids=lambda format: format.name)
def test_clip_of_openai_cannot_be_written(tmp_path, format):
    config = CLIP_SIZES["tiny"]
    weights = ClipWeights.of(config, random_parameters(config))
    with pytest.raises(ValueError, match=r"activation='quick_gelu', there 'gelu_tanh'; .*ln_pre"):
        write_weights(weights, tmp_path / "clip.npz", format.name)
    assert os.listdir(tmp_path) == []


def test_class_token_with_a_position_cannot_be_written(tmp_path):
    np.savez(tmp_path / "vit.npz", **random_tensors(BigVisionViT(), SIZE))
    weights = read_weights(tmp_path / "vit.npz")
    visual = weights.parameters()["visual"]
    visual["position_embedding"][0, 3] = 1
    weights = ClipWeights.of(weights.config, {"visual": visual})
    with pytest.raises(ValueError, match=r"position_embedding': the class token has a position"):
        write_weights(weights, tmp_path / "back.npz", "big_vision")
    assert os.listdir(tmp_path) == ["vit.npz"]


@pytest.mark.parametrize("format_name", ["openai", "open_clip", "transformers"])
def test_big_vision_tower_cannot_be_written_as_a_clip(tmp_path, format_name):
    np.savez(tmp_path / "vit.npz", **random_tensors(BigVisionViT(), SIZE))
    weights = read_weights(tmp_path / "vit.npz")
    name = "vit" if format_name == "transformers" else "vit.pt"
    with pytest.raises(ValueError, match=f"cannot be written in the format {format_name}: "):
        write_weights(weights, tmp_path / name, format_name)
    assert os.listdir(tmp_path) == ["vit.npz"]
