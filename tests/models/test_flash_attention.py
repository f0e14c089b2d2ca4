"""The fused attentions, run as plain operations, against XLA's: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import MeshConfig
from maft_jax.models.attention import (
    CudnnAttention,
    DeviceKind,
    XlaAttention,
    choose_attention,
    resolve_name,
)
from maft_jax.models.attention_pattern import (
    AttentionSegment,
    ProposalSequence,
    full_attention,
    gather_queries,
    with_separate_queries,
)
from maft_jax.models.flash_attention import FlashAttention
from maft_jax.runtime import sharding

WIDTH, NUM_PROPOSALS = 256, 5
SUMS_IN_FLOAT32 = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Compiler options with which a CPU adds up products of bfloat16 in float32, as accelerators do.

XLA of jax 0.11 and 0.12 leaves products in bfloat16 that YNNPACK can take, and then transposes some
of them, such as gradients of weights, into a form it does not take. What XLA compiles instead adds
up in bfloat16: 300 ones make 256. Without YNNPACK all are converted to float32, as in jax 0.10.
"""
jax_attention = jax.nn.dot_product_attention
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


def sequence_of(x, has_whole: bool) -> ProposalSequence:
    return ProposalSequence(x["patches"].shape[1], NUM_PROPOSALS, has_whole)


def sequence(x, has_whole: bool):
    names = ["whole"] * has_whole + ["patches", "proposals"]
    return jnp.concatenate([x[name] for name in names], axis=1)


def attend(attention, x, allowed):
    tokens = attention.project(x["whole"], x["kernel"], x["bias"])
    pattern = full_attention(x["whole"].shape[1])
    return [attention.merge(attention.attend(tokens, None, pattern, None), x["out"])]


def masked(attention, x, allowed, has_whole=False):
    """Outputs of the whole image, if it is there, of patches, and of proposals."""
    tokens = attention.project(sequence(x, has_whole), x["kernel"], x["bias"])
    pattern = sequence_of(x, has_whole).pattern
    attended = attention.attend(tokens, None, pattern, allowed)
    return by_segment(attention.merge(attended, x["out"]), pattern)


def masked_with_whole(attention, x, allowed):
    return masked(attention, x, allowed, has_whole=True)


def read_some(attention, x, tokens, pattern, allowed):
    kernel, bias = x["kernel"], x["bias"]
    queries = attention.project(gather_queries(tokens, pattern), kernel[:, :1], bias[:1])
    sources = attention.project(tokens, kernel[:, 1:], bias[1:])
    apart = with_separate_queries(pattern)
    attended = attention.attend(queries, sources, apart, allowed)
    return by_segment(attention.merge(attended, x["out"]), apart)


def read(attention, x, allowed, has_whole=False):
    pattern = sequence_of(x, has_whole).last_pattern
    return read_some(attention, x, sequence(x, has_whole), pattern, allowed)


def read_with_whole(attention, x, allowed):
    return read(attention, x, allowed, has_whole=True)


def read_class_token(attention, x, allowed):
    pattern = (AttentionSegment(range(1), range(x["whole"].shape[1])),)
    return read_some(attention, x, x["whole"], pattern, None)


def by_segment(output, pattern):
    return [output[:, segment.queries.start : segment.queries.stop] for segment in pattern]


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

    options = SUMS_IN_FLOAT32 if x["kernel"].dtype == jnp.bfloat16 else None
    gradient, outputs = jax.jit(jax.grad(total, has_aux=True), compiler_options=options)(x)
    return outputs, gradient


@functools.cache
def xla(form, dtype, **sizes):
    """Plain attention's outputs and gradients, once for all that are compared with them."""
    x, allowed = inputs(dtype, **sizes)
    return values_and_gradients(XlaAttention(), form, x, allowed)


@functools.cache
def xla_in_float32(form, dtype, **sizes):
    """The same of these inputs, computed in float32."""
    if dtype == jnp.float32:
        return xla(form, dtype, **sizes)
    x, allowed = inputs(dtype, **sizes)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)
    return values_and_gradients(XlaAttention(), form, exact, allowed)


def assert_same(attention, form, dtype, tolerance, **sizes):
    x, allowed = inputs(dtype, **sizes)
    outputs, gradient = values_and_gradients(attention, form, x, allowed)
    expected, expected_gradient = xla_in_float32(form, dtype, **sizes)
    for out, reference in zip(outputs, expected, strict=True):
        assert out.dtype == dtype
        scale = np.abs(reference).max()
        np.testing.assert_allclose(
            np.float32(out) / scale, reference / scale, atol=tolerance, rtol=0
        )
    _, plain_gradient = xla(form, dtype, **sizes)
    for name, reference in expected_gradient.items():
        ours, plain = (np.float32(one[name]) for one in (gradient, plain_gradient))
        allowance = tolerance * np.linalg.norm(reference)
        # A bias has 2e-2 in bfloat16, whichever way it is computed.
        allowance = max(allowance, 1.1 * np.linalg.norm(plain - reference))
        assert np.linalg.norm(ours - reference) <= allowance, name


def in_both_precisions(cases, largest):
    """What the largest forms contain are slow tests."""
    return [
        pytest.param(*case, dtype, tolerance, marks=() if case in largest else pytest.mark.slow)
        for case in cases
        for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2))
    ]


KERNEL_CASES = [(form,) for form in FORMS]


@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    in_both_precisions(KERNEL_CASES, [(read_with_whole,)]),
)
def test_kernels_agree_with_xla(form, dtype, tolerance):
    assert_same(flash(), form, dtype, tolerance, tokens=TOKENS)


@pytest.mark.slow
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


def cudnn_by_xla(devices=1, **axes) -> CudnnAttention:
    """What cuDNN would be given, computed by XLA: there is no GPU."""
    mesh = sharding.make_mesh(MeshConfig(**axes), jax.devices()[:devices])
    return CudnnAttention(mesh, implementation="xla")


CUDNN_CASES = [(form, TOKENS) for form in FORMS]
CUDNN_CASES += [(attend, TOKENS + 1), (masked_with_whole, TOKENS + 1)]


@pytest.mark.parametrize(
    ("form", "tokens", "dtype", "tolerance"),
    in_both_precisions(CUDNN_CASES, [(masked_with_whole, TOKENS + 1)]),
)
def test_what_cudnn_is_given_agrees_with_xla(form, tokens, dtype, tolerance):
    assert_same(cudnn_by_xla(), form, dtype, tolerance, tokens=tokens)


@pytest.mark.slow
def test_cudnn_spreads_images_and_heads_over_devices():
    attention = cudnn_by_xla(8, data=2, fsdp=2, model=2)
    assert_same(attention, masked_with_whole, jnp.float32, 1e-5, batch=4, tokens=21)


@pytest.mark.parametrize(("tokens", "lengths"), [(16, None), (17, [17, 17])])
def test_cudnn_never_gets_an_odd_number_of_tokens(tokens, lengths, monkeypatch):
    """Whatever it leaves in the added row, forth and back, touches no other."""
    given = []

    def fake(query, key, value, *, query_seq_lengths, key_value_seq_lengths, implementation):
        given.append((query.shape[1], key.shape[1], query_seq_lengths, key_value_seq_lengths))
        return with_garbage(query, key, value, tokens)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    x, _ = inputs(jnp.float32, tokens=tokens)
    pattern = full_attention(tokens)

    def total(attention, projected):
        return jnp.sum(jnp.sin(attention.attend(projected, None, pattern, None)))

    attention = CudnnAttention(flash().mesh)
    projected = attention.project(x["whole"], x["kernel"], x["bias"])
    both = jax.jit(jax.value_and_grad(total, argnums=1), static_argnums=0)
    found, gradients = both(attention, projected)
    expected, plain = both(XlaAttention(), projected)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, reference in zip(gradients, plain, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)
    for queries, keys, *told in given:
        assert (queries, keys) == (tokens + tokens % 2,) * 2
        for one in told:
            assert one is None if lengths is None else one.dtype == jnp.int32
            assert lengths is None or one.shape == (len(lengths),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def with_garbage(query, key, value, tokens):
    """Attention of the first `tokens`, and NaN in what is left, of its gradients as well."""
    return exact_rows(query, key, value, tokens).at[:, tokens:].set(jnp.nan)


def exact_rows(query, key, value, tokens):
    rows = (x[:, :tokens] for x in (query, key, value))
    exact = jax_attention(*rows, implementation="xla")
    return jnp.pad(exact, [(0, 0), (0, query.shape[1] - tokens), (0, 0), (0, 0)])


def with_garbage_forward(query, key, value, tokens):
    return with_garbage(query, key, value, tokens), (query, key, value)


def with_garbage_backward(tokens, operands, gradient):
    _, backward = jax.vjp(lambda *x: exact_rows(*x, tokens), *operands)
    return tuple(x.at[:, tokens:].set(jnp.nan) for x in backward(gradient))


with_garbage.defvjp(with_garbage_forward, with_garbage_backward)

H100 = DeviceKind("gpu", "NVIDIA H100 80GB HBM3", "9.0")
T4 = DeviceKind("gpu", "Tesla T4", "7.5")
MI300 = DeviceKind("gpu", "AMD Instinct MI300X", "gfx942")
TPU, CPU = DeviceKind("tpu", "TPU v5 lite"), DeviceKind("cpu")
TPU_V4 = DeviceKind("tpu", "TPU v4")


@pytest.mark.parametrize(
    ("device", "dtype", "heads", "head_width", "model_devices", "expected"),
    [
        (TPU, jnp.bfloat16, 12, 64, 1, "pallas"),
        (TPU, jnp.float32, 12, 64, 2, "pallas"),
        (TPU, jnp.bfloat16, 12, 64, 4, "xla"),
        (TPU, jnp.bfloat16, 3, 64, 1, "xla"),
        (TPU_V4, jnp.float32, 12, 64, 1, "xla"),
        (H100, jnp.bfloat16, 12, 64, 1, "cudnn"),
        (H100, jnp.bfloat16, 12, 64, 4, "cudnn"),
        (H100, jnp.bfloat16, 16, 80, 1, "cudnn"),
        (H100, jnp.bfloat16, 12, 128, 1, "cudnn"),
        (H100, jnp.float32, 12, 64, 1, "xla"),
        (H100, jnp.bfloat16, 12, 64, 8, "xla"),
        (H100, jnp.bfloat16, 12, 60, 1, "xla"),
        (H100, jnp.bfloat16, 12, 136, 1, "xla"),
        (DeviceKind("gpu", "NVIDIA A100", "8.0"), jnp.bfloat16, 12, 64, 1, "cudnn"),
        (DeviceKind("cuda", "NVIDIA B200", "10.0"), jnp.bfloat16, 12, 64, 1, "cudnn"),
        (T4, jnp.bfloat16, 12, 64, 1, "xla"),
        (MI300, jnp.bfloat16, 12, 64, 1, "xla"),
        (CPU, jnp.float32, 12, 64, 1, "xla"),
        (CPU, jnp.bfloat16, 12, 64, 1, "xla"),
    ],
)
def test_auto_takes_what_suits_the_device(
    device, dtype, heads, head_width, model_devices, expected
):
    sizes = (model_devices, heads, head_width, dtype)
    assert resolve_name("auto", device, *sizes) == expected
    assert resolve_name("xla", device, *sizes) == "xla"


def test_implementations_by_name():
    mesh = flash().mesh
    assert choose_attention("auto", mesh, 12, 64, jnp.float32) == XlaAttention()
    assert choose_attention("pallas", mesh, 12, 64, jnp.float32) == flash()


@pytest.mark.parametrize(
    ("device", "heads", "head_width", "model_devices", "dtype", "told"),
    [
        (CPU, 12, 64, 1, jnp.bfloat16, r"expected an NVIDIA GPU.*got cpu"),
        (H100, 12, 64, 1, jnp.float32, r"compute_dtype=bfloat16, got gpu and float32"),
        (T4, 12, 64, 1, jnp.bfloat16, r"8\.0 or more \(Ampere\), got 7\.5 of Tesla T4; use xla"),
        (MI300, 12, 64, 1, jnp.bfloat16, r"got gfx942 of AMD Instinct"),
        (H100, 12, 60, 1, jnp.bfloat16, r"width 60; expected a multiple of 8 up to 128"),
        (H100, 6, 256, 1, jnp.bfloat16, r"width 256; expected a multiple of 8 up to 128"),
        (H100, 12, 64, 8, jnp.bfloat16, r"12 heads; expected a multiple of 8"),
    ],
)
def test_cudnn_where_it_cannot_run_is_refused(
    device, heads, head_width, model_devices, dtype, told
):
    with pytest.raises(ValueError, match=f"^attention=cudnn: .*{told}"):
        resolve_name("cudnn", device, model_devices, heads, head_width, dtype)


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="3 heads of width 64; expected a multiple of 2"):
        resolve_name("pallas", TPU, 1, 3, 64, jnp.bfloat16)
    with pytest.raises(ValueError, match="heads of width 80; expected a divisor of 128"):
        resolve_name("pallas", TPU, 1, 16, 80, jnp.bfloat16)
    with pytest.raises(ValueError, match="float32 on a TPU v4; expected bfloat16"):
        resolve_name("pallas", TPU_V4, 1, 12, 64, jnp.float32)
    x, _ = inputs(jnp.float32)
    tokens = flash().project(x["whole"], x["kernel"], x["bias"])
    everything = range(tokens.shape[1])
    causal = (AttentionSegment(everything, everything, masked=True),)
    with pytest.raises(ValueError, match="only proposals have a mask"):
        flash().attend(tokens, None, causal, jnp.ones((1, TOKENS, TOKENS), bool))
