"""The TPU kernels, run as plain operations, against XLA's attention: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax import sharding
from maft_jax.config import MeshConfig
from maft_jax.models.attention import (
    CudnnAttention,
    XlaAttention,
    choose_attention,
    resolve_name,
)
from maft_jax.models.flash_attention import FlashAttention
from maft_jax.models.token_rows import (
    MaskedRows,
    Reading,
    all_read_all,
    queries_of,
    with_queries_apart,
)

# (precision of the products, largest difference from XLA's attention)
TOLERANCES = [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)]
WIDTH, NUM_PROPOSALS = 256, 5
TOKENS = 150
"""More than one chunk of queries, and some that are left over."""


def flash(devices=1, head_width=64, **axes) -> FlashAttention:
    mesh = sharding.make_mesh(MeshConfig(**axes), jax.devices()[:devices])
    return FlashAttention(mesh, head_width, interpret=True)


def inputs(dtype, tokens=TOKENS, head_width=64, batch=2):
    """`tokens` are those of an image: a class token and patches."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(*shape):
        return jax.random.normal(next(keys), shape)

    heads = WIDTH // head_width
    allowed = jax.random.bernoulli(next(keys), 0.3, (batch, NUM_PROPOSALS, tokens - 1))
    arrays = {
        "kernel": 1.5 * draw(WIDTH, 3, heads, head_width) / WIDTH**0.5,
        "bias": draw(3, heads, head_width),
        "out": draw(heads, head_width, WIDTH) / WIDTH**0.5,
        "whole": draw(batch, tokens, WIDTH),
        "patches": draw(batch, tokens - 1, WIDTH),
        "proposals": draw(batch, NUM_PROPOSALS, WIDTH),
    }
    cast = {name: x.astype(dtype) for name, x in arrays.items()}
    return cast, allowed.at[:, 0].set(False)  # the first proposal allows no patch


def rows_of(x, has_whole: bool) -> MaskedRows:
    return MaskedRows(x["patches"].shape[1], NUM_PROPOSALS, has_whole)


def sequence(x, has_whole: bool):
    names = ["whole"] * has_whole + ["patches", "proposals"]
    return jnp.concatenate([x[name] for name in names], axis=1)


def attend(attention, x, allowed):
    tokens = attention.project(x["whole"], x["kernel"], x["bias"])
    readings = all_read_all(x["whole"].shape[1])
    return [attention.merge(attention.attend(tokens, None, readings, None), x["out"])]


def masked(attention, x, allowed, has_whole=False):
    """Outputs of the whole image, if it is there, of patches, and of proposals."""
    tokens = attention.project(sequence(x, has_whole), x["kernel"], x["bias"])
    readings = rows_of(x, has_whole).readings
    attended = attention.attend(tokens, None, readings, allowed)
    return by_reading(attention.merge(attended, x["out"]), readings)


def masked_with_whole(attention, x, allowed):
    return masked(attention, x, allowed, has_whole=True)


def read_some(attention, x, tokens, readings, allowed):
    kernel, bias = x["kernel"], x["bias"]
    queries = attention.project(queries_of(tokens, readings), kernel[:, :1], bias[:1])
    sources = attention.project(tokens, kernel[:, 1:], bias[1:])
    apart = with_queries_apart(readings)
    attended = attention.attend(queries, sources, apart, allowed)
    return by_reading(attention.merge(attended, x["out"]), apart)


def read(attention, x, allowed, has_whole=False):
    readings = rows_of(x, has_whole).last_readings
    return read_some(attention, x, sequence(x, has_whole), readings, allowed)


def read_with_whole(attention, x, allowed):
    return read(attention, x, allowed, has_whole=True)


def read_class_token(attention, x, allowed):
    readings = (Reading(range(1), range(x["whole"].shape[1])),)
    return read_some(attention, x, x["whole"], readings, None)


def by_reading(output, readings):
    return [output[:, reading.queries.start : reading.queries.stop] for reading in readings]


FORMS = [attend, masked, masked_with_whole, read, read_with_whole, read_class_token]


def values_and_gradients(attention, form, x, allowed):
    """Outputs, and gradients of a sum in which every output counts differently."""

    def total(x):
        outputs = form(attention, x, allowed)
        weights = [jnp.cos(jnp.arange(out.size)).reshape(out.shape) for out in outputs]
        total = sum(
            jnp.sum(w * out.astype(jnp.float32)) for w, out in zip(weights, outputs, strict=True)
        )
        return total, outputs

    gradient, outputs = jax.jit(jax.grad(total, has_aux=True))(x)
    return outputs, gradient


def assert_same(attention, form, dtype, tolerance, **sizes):
    x, allowed = inputs(dtype, **sizes)
    outputs, gradient = values_and_gradients(attention, form, x, allowed)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)
    expected, expected_gradient = values_and_gradients(XlaAttention(), form, exact, allowed)
    for out, reference in zip(outputs, expected, strict=True):
        assert out.dtype == dtype
        scale = np.abs(reference).max()
        np.testing.assert_allclose(
            np.float32(out) / scale, reference / scale, atol=tolerance, rtol=0
        )
    _, plain_gradient = values_and_gradients(XlaAttention(), form, x, allowed)
    for name, reference in expected_gradient.items():
        ours, plain = (np.float32(one[name]) for one in (gradient, plain_gradient))
        allowance = tolerance * np.linalg.norm(reference)
        # A bias has 2e-2 in bfloat16, whichever way it is computed.
        allowance = max(allowance, 1.1 * np.linalg.norm(plain - reference))
        assert np.linalg.norm(ours - reference) <= allowance, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_kernels_agree_with_xla(form, dtype, tolerance):
    assert_same(flash(), form, dtype, tolerance)


@pytest.mark.parametrize(("head_width", "tokens"), [(32, 17), (128, 128), (64, 144)])
def test_other_head_widths_and_numbers_of_tokens(head_width, tokens):
    """At 144 the patches begin with a tile of memory, at others within one."""
    attention = flash(head_width=head_width)
    assert_same(
        attention, masked_with_whole, jnp.float32, 1e-5, head_width=head_width, tokens=tokens
    )


def test_images_and_heads_spread_over_devices():
    attention = flash(8, data=2, fsdp=2, model=2)
    assert_same(attention, masked_with_whole, jnp.float32, 1e-5, batch=4, tokens=20)


def test_empty_mask_attends_only_to_itself():
    x, allowed = inputs(jnp.float32)
    moved = x | {"patches": x["patches"] + 1}
    first, second = (masked(flash(), each, allowed)[-1] for each in (x, moved))
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert np.abs(first[:, 1:] - second[:, 1:]).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_layout_for_cudnn_is_that_of_the_public_function(form):
    """What cuDNN would be given, computed by XLA: there is no GPU."""
    assert_same(CudnnAttention(implementation="xla"), form, jnp.float32, 1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "heads", "model_devices", "expected"),
    [
        ("tpu", jnp.bfloat16, 12, 1, "pallas"),
        ("tpu", jnp.float32, 12, 2, "pallas"),
        ("tpu", jnp.bfloat16, 12, 4, "xla"),
        ("tpu", jnp.bfloat16, 3, 1, "xla"),
        ("gpu", jnp.bfloat16, 12, 1, "cudnn"),
        ("gpu", jnp.float32, 12, 1, "xla"),
        ("cpu", jnp.float32, 12, 1, "xla"),
    ],
)
def test_auto_takes_what_suits_the_device(platform, dtype, heads, model_devices, expected):
    assert resolve_name("auto", platform, model_devices, heads, 64, dtype) == expected
    assert resolve_name("xla", platform, model_devices, heads, 64, dtype) == "xla"


def test_implementations_by_name():
    mesh = flash().mesh
    assert choose_attention("auto", mesh, 12, 64, jnp.float32) == XlaAttention()
    assert choose_attention("pallas", mesh, 12, 64, jnp.float32) == flash()


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="3 heads of width 64; expected a multiple of 2"):
        resolve_name("pallas", "tpu", 1, 3, 64, jnp.bfloat16)
    with pytest.raises(ValueError, match="heads of width 80; expected a divisor of 128"):
        resolve_name("pallas", "tpu", 1, 16, 80, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"expected an NVIDIA GPU.*got cpu"):
        resolve_name("cudnn", "cpu", 1, 12, 64, jnp.bfloat16)
    with pytest.raises(ValueError, match="float32 on a TPU v4; expected bfloat16"):
        resolve_name("pallas", "tpu", 1, 12, 64, jnp.float32, "TPU v4")
    assert resolve_name("auto", "tpu", 1, 12, 64, jnp.float32, "TPU v4") == "xla"
    x, _ = inputs(jnp.float32)
    tokens = flash().project(x["whole"], x["kernel"], x["bias"])
    everything = range(tokens.shape[1])
    causal = (Reading(everything, everything, masked=True),)
    with pytest.raises(ValueError, match="only proposals have a mask"):
        flash().attend(tokens, None, causal, jnp.ones((1, TOKENS, TOKENS), bool))
