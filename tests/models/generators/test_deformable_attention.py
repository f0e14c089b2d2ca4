"""Deformable attention against the official function: borders, gradients, a module, a layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.models.generators.deformable_attention import (
    DeformableAttention,
    cell_centres,
    compass_bias,
    sample_levels,
)
from maft_jax.models.generators.pixel_decoder import DeformableEncoderLayer, PixelDecoderConfig
from maft_jax.models.generators.sine_positions import sine_positions
from tests.golden_files import golden

ON_PIXEL_CENTRES = [1, 4]
"""Queries of the fixture whose gradient with respect to the locations is one-sided."""


def level_sizes(arrays) -> tuple:
    return tuple(map(tuple, arrays["shapes"].tolist()))


def close(found, expected, tolerance=2e-6):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def arrays():
    return golden("generators/msdeform")


@pytest.mark.parametrize("queries_at_once", [128, 7])
def test_samples_and_gradients_are_those_of_the_official_function(
    arrays, monkeypatch, queries_at_once
):
    monkeypatch.setattr(
        "maft_jax.models.generators.deformable_attention._QUERIES_AT_ONCE", queries_at_once
    )
    sizes = level_sizes(arrays)
    inputs = [arrays[name] for name in ("value", "sampling_locations", "attention_weights")]

    @jax.jit
    def run(inputs, cotangent):
        output, pullback = jax.vjp(lambda v, x, w: sample_levels(v, sizes, x, w), *inputs)
        return output, pullback(cotangent.reshape(output.shape))

    output, gradients = run(inputs, arrays["cotangent"])
    close(output.reshape(arrays["output"].shape), arrays["output"])
    names = ("grad_value", "grad_sampling_locations", "grad_attention_weights")
    for name, gradient in zip(names, gradients, strict=True):
        found, expected = np.asarray(gradient), arrays[name]
        if name == "grad_sampling_locations":
            found = np.delete(found, ON_PIXEL_CENTRES, axis=1)
            expected = np.delete(expected, ON_PIXEL_CENTRES, axis=1)
        close(found, expected)


def test_a_small_map_is_read_as_grid_sample_reads_it(arrays):
    locations = jax.device_put(arrays["tiny_locations"])[None, :, None, None, None]
    value = jax.device_put(arrays["tiny_value_2x3"]).reshape(1, 6, 1, 1)
    output = sample_levels(value, ((2, 3),), locations, jnp.ones(locations.shape[:-1]))
    np.testing.assert_allclose(output.reshape(-1), arrays["tiny_output"], rtol=0, atol=1e-6)


def test_levels_with_other_numbers_of_tokens_are_refused():
    locations = jnp.zeros((1, 1, 1, 1, 1, 2))
    with pytest.raises(ValueError, match="have 6 tokens; got values of 5"):
        sample_levels(jnp.zeros((1, 5, 1, 2)), ((2, 3),), locations, locations[..., 0])


def test_an_encoder_layer_is_the_official_one(arrays):
    sizes = level_sizes(arrays)[:3]
    flat = {
        name.removeprefix("layer/"): value
        for name, value in arrays.items()
        if name.startswith("layer/")
    }

    def dense(name):
        return {"kernel": flat[f"{name}.weight"].T, "bias": flat[f"{name}.bias"]}

    def norm(name):
        return {"scale": flat[f"{name}.weight"], "bias": flat[f"{name}.bias"]}

    names = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    attention = {name: dense(f"self_attn.{name}") for name in names}
    params = {
        "self_attn": attention,
        **{name: dense(name) for name in ("linear1", "linear2")},
        **{name: norm(name) for name in ("norm1", "norm2")},
    }
    references = cell_centres(sizes)
    np.testing.assert_allclose(references, arrays["reference_points"], rtol=0, atol=1e-6)
    source, positions = jax.device_put(arrays["layer_src"]), jax.device_put(arrays["layer_pos"])
    module = DeformableAttention(4, 4, jnp.float32)
    attended = jax.jit(functools.partial(module.apply, level_sizes=sizes))(
        {"params": attention}, source + positions, references, source
    )
    close(attended, arrays["attn_output"])
    layer = DeformableEncoderLayer(PixelDecoderConfig(32, 32, 1, 48, 4, 4), jnp.float32)
    run = jax.jit(lambda x, place: layer.apply({"params": params}, x, place, references, sizes))
    for image in range(len(source)):
        output = run(source[image : image + 1], positions[image])
        close(output, arrays["layer_output"][image : image + 1])
    rounded = DeformableEncoderLayer(layer.config, jnp.bfloat16)
    run = jax.jit(lambda x, place: rounded.apply({"params": params}, x, place, references, sizes))
    output = run(source[:1], positions[0])
    assert output.dtype == jnp.bfloat16
    close(output, arrays["layer_output"][:1], 2e-2)


@pytest.mark.parametrize(("height", "width", "features"), [(3, 4, 32), (11, 15, 32), (7, 10, 256)])
def test_sine_positions_are_the_official_ones(arrays, height, width, features):
    expected = arrays[f"sine_{'256_' * (features == 256)}{height}x{width}"]
    found = sine_positions(height, width, features)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_points_begin_in_eight_directions(arrays):
    expected = arrays["initial_sampling_offsets_bias_8_heads_3_levels_4_points"]
    np.testing.assert_allclose(compass_bias(8, 3, 4), expected, rtol=1e-6, atol=1e-6)
