"""Sampling by products, run as plain operations: the official function, the gather, its work."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.models.generators.deformable_attention import (
    cell_centres,
    compass_bias,
    in_pixels,
    sample_by_gather,
)
from maft_jax.models.generators.sampling_kernels import (
    TILE,
    TilePoints,
    padded_levels,
    sample_by_products,
)
from tests.golden_files import golden
from tests.runs import REPOSITORY

pytestmark = pytest.mark.slow

ON_PIXEL_CENTRES = [1, 4]
"""Queries of the fixture whose gradient with respect to the locations is one-sided."""
FULL_SIZE = ((20, 20), (40, 40), (80, 80))
"""Levels of 640 x 640 pixels."""


def close(found, expected, tolerance):
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


def samples_and_gradients(sample, operands, cotangent):
    @jax.jit
    def run(operands, cotangent):
        output, pullback = jax.vjp(sample, *operands)
        return output, pullback(cotangent.reshape(output.shape).astype(output.dtype))

    output, gradients = run(operands, cotangent)
    return [output, *gradients]


def test_products_and_gradients_are_those_of_the_official_function():
    arrays = golden("generators/msdeform")
    sizes = tuple(map(tuple, arrays["shapes"].tolist()))
    names = ("value", "sampling_locations", "attention_weights")

    def sample(values, locations, weights):
        x, y = in_pixels(locations, sizes)
        return sample_by_products(values, x, y, weights, sizes, interpret=True)

    output, *gradients = samples_and_gradients(
        sample, [arrays[name] for name in names], arrays["cotangent"]
    )
    close(output.reshape(arrays["output"].shape), arrays["output"], 2e-6)
    for name, gradient in zip(names, gradients, strict=True):
        found, expected = np.asarray(gradient), arrays[f"grad_{name}"]
        if name == "sampling_locations":
            found = np.delete(found, ON_PIXEL_CENTRES, axis=1)
            expected = np.delete(expected, ON_PIXEL_CENTRES, axis=1)
        close(found, expected, 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_several_tiles_and_blocks_give_what_the_gather_gives(dtype, tolerance):
    """Also on pixels, where the gradient of locations is one-sided: both look to the same side."""
    sizes = ((30, 18),)
    (level,) = padded_levels(sizes)
    centres = cell_centres(sizes)
    queries, points = len(centres), 2
    assert queries > 2 * TILE and level.num_blocks > 1 and level.columns > level.width
    values, offsets, weights, cotangent = (
        jax.random.normal(jax.random.key(seed), (1, queries, 2, *shape))
        for seed, shape in enumerate([(8,), (1, points, 2), (1, points), (8,)])
    )
    offsets = 2 * offsets.at[:, ::3].set(jnp.round(offsets[:, ::3]))
    x, y = (
        jnp.clip(centres[:, None, None, None, axis] * side - 0.5 + offsets[..., axis], -2, side + 1)
        for axis, side in enumerate((level.width, level.height))
    )
    operands = [values.astype(dtype), x, y, weights]
    assert jnp.mean(y == jnp.round(y)) > 0.2
    found, expected = (
        samples_and_gradients(functools.partial(sample, level_sizes=sizes), operands, cotangent)
        for sample in (
            functools.partial(sample_by_products, interpret=True),
            sample_by_gather,
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        close(one, other, tolerance)


def test_blocks_of_rows_are_whole_registers_and_never_large():
    for width in range(1, 400):
        (level,) = padded_levels(((7, width),))
        assert level.columns % 8 == 0 and width <= level.columns <= max(8, width * 5 / 4 + 8)
        assert level.block_pixels % 128 == 0 and 256 <= level.block_pixels <= 1024
        assert level.num_blocks * level.block_rows >= 7


def test_rows_that_no_point_lies_in_are_left_out():
    """Where points begin, at full size: a third of all products of queries and pixels."""
    offsets = compass_bias(8, 3, 4).reshape(8, 3, 4, 2)
    places = cell_centres(FULL_SIZE)[:, None, None, None] * np.array(FULL_SIZE)[:, None, ::-1]
    y = jax.device_put((places - 0.5 + offsets)[..., 1])  # [q, a, level, point]
    y = jnp.pad(y, [(0, -len(y) % TILE), (0, 0), (0, 0), (0, 0)], mode="edge")
    y = jnp.clip(y, -2, np.array([22, 42, 82])[:, None]).reshape(-1, TILE, 8, 3, 4)
    visited = of_all = pairs = all_pairs = 0
    for index, level in enumerate(padded_levels(FULL_SIZE)):

        def number(y, level=level):  # [q, point]
            first, stop = TilePoints(level, [], list(y.T[:, None]), []).blocks()
            return jnp.maximum(stop - first, 0)

        blocks = int(jax.vmap(jax.vmap(number, 1))(y[..., index, :]).sum())
        most = y.shape[0] * 8 * level.num_blocks
        visited, of_all = visited + blocks, of_all + most
        pairs += blocks * level.block_pixels * TILE
        all_pairs += most * level.block_pixels * TILE
    assert (visited, of_all) == (1370, 3960)
    assert (2 * 32 * pairs, 2 * 32 * all_pairs) == (12_977_176_576, 39_309_017_088)


def compiled(*arguments: str, search: bool) -> dict[tuple[str, ...], list[int]]:
    """What the compiler says; kernels are the same if it does not search for the fastest loops."""
    program = [sys.executable, "-m", "tests.models.generators.compile_sampling", *arguments]
    environment = os.environ | ({} if search else {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"})
    finished = subprocess.run(
        program, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    return {
        tuple(word for word in line if not word.isdigit()): [int(x) for x in line if x.isdigit()]
        for line in lines
    }


def test_an_attention_at_full_size_moves_less_than_a_gigabyte():
    """And is one kernel in each direction; the gather moves 10 GB in bfloat16, 19 in float32."""
    costs = compiled("attention", "v5e:1x1", search=True)
    megabytes = {case: num_bytes / 1e6 for case, (_, num_bytes, _) in costs.items()}
    assert megabytes == {
        ("forward", "bfloat16"): pytest.approx(237, rel=0.05),
        ("gradients", "bfloat16"): pytest.approx(654, rel=0.05),
        ("forward", "float32"): pytest.approx(364, rel=0.05),
    }
    kernels = {case: number for case, (_, _, number) in costs.items()}
    assert kernels == {case: 2 if "gradients" in case else 1 for case in costs}


def test_a_network_on_four_tpus_has_the_kernels():
    """One for each of its two layers, and in training one more for the gradients of each."""
    assert compiled("network", "v5e:2x2", search=False) == {("each",): [2], ("train",): [4]}
