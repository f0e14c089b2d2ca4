"""Each rule for ONNX beside what XLA computes, with sizes that are known only when it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from maft_jax.export import onnx_program
from maft_jax.export.onnx_rules import RULES
from maft_jax.export.programs import Argument, Program

INPUTS = (
    Argument("x", "float32", ("batch", "rows", 4), ""),
    Argument("y", "float32", ("batch", "rows", 4), ""),
)
INDICES = np.array([3, 0, 0, 2], np.int32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 2, 6)).astype(np.float32)


def images(x):
    """[batch, 4, 4, 4], of the first row alone."""
    return jnp.repeat(x[:, :1, :, None], 4, axis=3).transpose(0, 2, 3, 1)[..., :1] * jnp.ones(4)


CASES = {
    "abs": lambda x, y: lax.abs(x),
    "add": lambda x, y: x + y,
    "and": lambda x, y: (x > 0) & (y > 0),
    "argmax": lambda x, y: jnp.argmax(x, axis=-1),
    "clamp": lambda x, y: lax.clamp(-0.5, x, 0.5),
    "concatenate": lambda x, y: jnp.concatenate([x, y], axis=1),
    "conv_general_dilated": lambda x, y: lax.conv_general_dilated(
        images(x),
        KERNEL,
        (1, 2),
        ((1, 1), (0, 2)),
        rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    ),
    "convert_element_type": lambda x, y: (x * 4).astype(jnp.int32),
    "dim_as_value": lambda x, y: jnp.mean(x, axis=1),
    "div": lambda x, y: x / y,
    "dot_general": lambda x, y: jnp.einsum("brc,bsc->bsr", x, y),
    "dot_general of two axes": lambda x, y: jnp.einsum("bri,ijcd->brjcd", x[..., :3], KERNEL),
    "eq": lambda x, y: (x > 0) == (y > 0),
    "erfc": lambda x, y: lax.erfc(x),
    "exp": lambda x, y: jnp.exp(x),
    "gather": lambda x, y: x[:, :, INDICES] + x[..., 1:2],
    "gather of slices": lambda x, y: jnp.concatenate([x, y], axis=1)[:, x.shape[1] :],
    "gather of a crop": lambda x, y: images(x)[:, :3, 1:3],
    "gather by rows": lambda x, y: jnp.take_along_axis(x, jnp.argmax(x, axis=1)[:, :1, None], 1),
    "ge": lambda x, y: x >= y,
    "gt": lambda x, y: x > y,
    "integer_pow": lambda x, y: x**3,
    "le": lambda x, y: x <= y,
    "log": lambda x, y: jnp.log(jnp.abs(x)),
    "log1p": lambda x, y: jnp.log1p(jnp.abs(x)),
    "logistic": lambda x, y: jax.nn.sigmoid(x),
    "lt": lambda x, y: x < y,
    "max": lambda x, y: jnp.maximum(x, y),
    "min": lambda x, y: jnp.minimum(x, y),
    "mul": lambda x, y: x * y,
    "ne": lambda x, y: (x > 0) != (y > 0),
    "neg": lambda x, y: -x,
    "not": lambda x, y: ~(x > 0),
    "or": lambda x, y: (x > 0) | (y > 0),
    "pad": lambda x, y: jnp.pad(x > 0, [(0, 0), (1, 0), (0, 2)]),
    "reduce_max": lambda x, y: jnp.max(x, axis=1),
    "reduce_min": lambda x, y: jnp.min(x, axis=(0, 2)),
    "reduce_sum": lambda x, y: jnp.sum(x, axis=(1, 2)),
    "reshape": lambda x, y: x.reshape(-1, 2, 2),
    "rsqrt": lambda x, y: lax.rsqrt(x * x),
    "select_n": lambda x, y: jnp.where(x > 0, y, -1.0),
    "slice": lambda x, y: lax.slice(x, (0, 0, 1), x.shape, (1, 1, 2)),
    "sqrt": lambda x, y: jnp.sqrt(x * x),
    "squeeze": lambda x, y: x[..., :1].squeeze(-1),
    "stack": lambda x, y: jnp.stack([x, y], axis=1),
    "sub": lambda x, y: x - y,
    "tanh": lambda x, y: jnp.tanh(x),
    "transpose": lambda x, y: x.transpose(2, 0, 1),
    "unstack": lambda x, y: jnp.unstack(x, axis=2)[1],
}


def function(_, x, y):
    return {name: case(x, y) for name, case in CASES.items()}


def test_every_rule_computes_what_xla_does():
    model = onnx_program.convert(Program("all", function, {}, INPUTS, {}))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for batch, rows in ((2, 3), (1, 5)):
        rng = np.random.default_rng(rows)
        x, y = rng.normal(size=(2, batch, rows, 4)).astype(np.float32)
        expected = jax.jit(function)(None, x, y)
        names = [each.name for each in session.get_outputs()]
        for name, found in zip(names, session.run(names, {"x": x, "y": y}), strict=True):
            assert found.dtype == expected[name].dtype, name
            np.testing.assert_allclose(found, expected[name], 2e-6, 2e-6, err_msg=name)


def test_every_rule_is_among_them():
    """But what older versions of jax have no primitive for."""
    assert RULES.keys() - {name.partition(" ")[0] for name in CASES} <= {"expand_dims"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda x: jnp.cumsum(x, axis=2), "cumsum: a primitive"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 0), (-1, 0, 0)]), "no negative"),
        (lambda x: x[jnp.array([0]), :, jnp.array([1])], "gather"),
        (
            lambda x: jax.vmap(lambda i: lax.dynamic_slice_in_dim(x, i, 2, 2))(INDICES[1:3]),
            "gather",
        ),
    ],
)
def test_what_has_no_rule_is_refused(case, message):
    program = Program("one", lambda _, x: {"out": case(x)}, {}, INPUTS[:1], {})
    with pytest.raises(ValueError, match=message):
        onnx_program.convert(program)
