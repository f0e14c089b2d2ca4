"""Owners of pixels and interiors of masks, against torch at full resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from maft_jax.models.mask_pixels import NOBODY, PlacedMasks, mask_interiors, own_pixels

own = jax.jit(own_pixels, static_argnames="out_size")
interiors = jax.jit(mask_interiors, static_argnames="out_size")

IMAGE, NATIVE, OUT = (40, 54), (70, 93), (128, 128)


def placed(values, source, kind) -> PlacedMasks:
    sizes = (jnp.asarray(size, jnp.int32) for size in (source, IMAGE, NATIVE))
    return PlacedMasks(jax.device_put(values), *sizes, kind)


def stored_case(rng, num_masks):
    """8-bit masks, and what torch makes of them at native size."""
    grid = tuple(-(-side // 4) for side in IMAGE)
    values = rng.integers(0, 256, (num_masks, *grid), np.uint8)
    whole = torch.tensor(values[None]).float() / 255
    whole = interpolate(whole, IMAGE, mode="bilinear", align_corners=True)
    whole = interpolate(whole, NATIVE, mode="bilinear", align_corners=False)[0].numpy()
    array = rng.integers(0, 256, (num_masks, 32, 32), np.uint8)
    array[:, : grid[0], : grid[1]] = values
    return placed(array, grid, "stored"), whole


def logits_case(rng, num_masks):
    values = rng.normal(size=(num_masks, 16, 16)).astype(np.float32)
    whole = interpolate(torch.tensor(values[None]), (64, 64), mode="bilinear")
    whole = interpolate(whole[..., : IMAGE[0], : IMAGE[1]], NATIVE, mode="bilinear")
    return placed(values, (64, 64), "logits"), whole[0].sigmoid().numpy()


@pytest.mark.parametrize("make_case", [stored_case, logits_case])
def test_pixels_belong_to_the_weightiest_mask_and_are_counted_by_strips_as_at_once(make_case):
    rng = np.random.default_rng(0)
    masks, whole = make_case(rng, 11)
    weights = rng.random(11).astype(np.float32)
    weights[[0, 7]] = 0
    scores = weights[:, None, None] * whole
    best = scores.argmax(axis=0)
    owned = np.arange(11)[:, None, None] == best
    inside = whole >= 0.5
    clear = np.ptp(np.sort(scores, axis=0)[-2:], axis=0) > 1e-6
    clear &= (np.abs(whole - 0.5) > 1e-6).all(axis=0)
    assert clear.mean() > 0.999

    found = own(weights, masks, out_size=OUT)
    expected = np.where(np.take_along_axis(inside, best[None], 0)[0], best, NOBODY)
    owner = np.asarray(found.owner)
    np.testing.assert_array_equal(owner[:70, :93][clear], expected[clear])
    assert (owner[70:] == NOBODY).all() and (owner[:, 93:] == NOBODY).all()
    blurred = int((~clear).sum())
    for ours, theirs in [
        (found.owned, owned),
        (found.inside, inside),
        (found.both, owned & inside),
    ]:
        np.testing.assert_allclose(ours, theirs.sum(axis=(1, 2)), rtol=0, atol=blurred)

    strips = [own(weights, masks, first, out_size=(48, 128)) for first in (0, 48)]
    rows = np.concatenate([strip.owner for strip in strips])
    np.testing.assert_array_equal(rows[:70], owner[:70])
    for name in ("owned", "inside", "both"):
        total = sum(getattr(strip, name) for strip in strips)
        np.testing.assert_array_equal(total, getattr(found, name))


@pytest.mark.parametrize("make_case", [stored_case, logits_case])
def test_interiors_are_pixels_above_one_half_with_their_mean(make_case):
    masks, whole = make_case(np.random.default_rng(1), 11)
    found = interiors(masks, out_size=OUT)
    bits = np.unpackbits(np.asarray(found.bits), axis=-1, count=11, bitorder="little")
    inside = np.moveaxis(bits, -1, 0).astype(bool)
    clear = np.abs(whole - 0.5) > 1e-6
    np.testing.assert_array_equal(inside[:, :70, :93][clear], (whole > 0.5)[clear])
    assert not inside[:, 70:].any() and not inside[:, :, 93:].any()
    np.testing.assert_array_equal(found.num_pixels, inside.sum(axis=(1, 2)))
    sums = (inside[:, :70, :93] * whole).sum(axis=(1, 2))
    np.testing.assert_allclose(found.value_sum, sums, rtol=1e-6)


def test_masks_that_leave_a_pixel_out_do_not_own_it():
    values = np.zeros((2, 10, 14), np.uint8)
    values[1, :, :3] = 255
    found = own(jnp.array([0.9, 0.1]), placed(values, (10, 14), "stored"), out_size=OUT)
    assert found.owned[0] == 0 and 0 < found.owned[1] < 70 * 93


def test_hundreds_of_masks_on_large_images_fit_two_gigabytes():
    def bytes_of(function, kind, dtype, *first):
        sizes = [jax.ShapeDtypeStruct((2,), jnp.int32)] * 3
        masks = PlacedMasks(jax.ShapeDtypeStruct((250, 512, 512), dtype), *sizes, kind)
        program = jax.jit(function, static_argnames="out_size")
        memory = program.lower(*first, masks, out_size=(2048, 2048)).compile().memory_analysis()
        return sum(
            getattr(memory, f"{part}_size_in_bytes") for part in ("temp", "output", "argument")
        )

    weights = jax.ShapeDtypeStruct((250,), jnp.float32)
    for kind, dtype, most in (("stored", jnp.uint8, 0.3), ("logits", jnp.float32, 0.7)):
        assert bytes_of(own_pixels, kind, dtype, weights) < most * 2**30
        assert bytes_of(mask_interiors, kind, dtype) < (most + 0.3) * 2**30
