"""Bounds by literal numbers: bytes and FLOPs over published peaks."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.flops import EncoderSize, step_flops
from maft_jax.planning.bounds import scaling_efficiency, step_bounds
from maft_jax.planning.chips import CHIPS
from maft_jax.planning.collectives import BETWEEN_SLICES, Collective
from maft_jax.planning.traffic import Traffic, sum_traffic
from tests.planning.plans import ALL_REDUCE

V5E = CHIPS["v5e"]


def bounds_of(**changes):
    values = {"flops": 197e12, "hbm_bytes": 81.9e9, "traffic": (), "model_flops": 98.5e12}
    return step_bounds(V5E, **(values | changes))


def test_the_slowest_of_what_overlaps_is_the_bound():
    bounds = bounds_of(hbm_bytes=2 * 819e9, traffic=[ALL_REDUCE])
    assert (bounds.compute, bounds.memory) == (1.0, 2.0)
    assert bounds.links == pytest.approx(2 * 3 / 4 * 9e8 / (2 * 45e9))
    assert (bounds.overlapped, bounds.limit) == (2.0, "memory")
    assert bounds.not_overlapped == pytest.approx(2.0 + 0.015)
    assert bounds.mfu == pytest.approx(98.5 / (2 * 197))


def test_compute_counts_what_kernels_do_not_say():
    assert bounds_of(flops=0.0).compute == 0.5
    assert bounds_of(flops=394e12).compute == 2.0


def test_an_ironwood_device_is_half_a_chip():
    bounds = step_bounds(
        CHIPS["tpu7x"], flops=2307e12, hbm_bytes=7380e9, traffic=(), model_flops=0.0
    )
    assert (bounds.compute, bounds.memory) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("kind", "link_bytes"),
    [
        ("all-reduce", 2 * 3 / 4 * 8e6),
        ("all-gather", 3 / 4 * 8e6),
        ("reduce-scatter", 3 / 4 * 8e6),
        ("all-to-all", 3 / 4 * 8e6),
        ("collective-permute", 8e6),
    ],
)
def test_bytes_that_pass_through_a_chip(kind, link_bytes):
    traffic = dataclasses.replace(ALL_REDUCE, kind=kind, payload_bytes=8e6)
    assert traffic.link_bytes() == link_bytes
    assert dataclasses.replace(traffic, groups_per_chip=2).link_bytes() == 2 * link_bytes
    assert traffic.dcn_bytes() == 0


def test_between_slices_every_chip_sends_its_share_of_the_sum():
    spanning = dataclasses.replace(ALL_REDUCE, payload_bytes=8e6, slices=2)
    assert spanning.dcn_bytes() == 2 * 1 / 2 * 8e6 / 4
    sent = dataclasses.replace(spanning, kind=BETWEEN_SLICES, chips=1, payload_bytes=2e6, links=0)
    assert (sent.link_bytes(), sent.dcn_bytes()) == (0, 2e6)
    assert sent.dcn_seconds(V5E) == pytest.approx(2e6 / 3.125e9)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a device of libtpu's topology tells of itself."""

    id: int
    coords: tuple[int, ...]
    slice_index: int | None = None


def mesh_of(shape: tuple[int, ...], slices: int = 1, per_chip: int = 1) -> Mesh:
    """Devices of a chip one after another, chips in the order of their coordinates."""
    places = [(s, coords) for s in range(slices) for coords in np.ndindex(shape)]
    devices = [
        FakeDevice(per_chip * number + core, coords, s if slices > 1 else None)
        for number, (s, coords) in enumerate(places)
        for core in range(per_chip)
    ]
    return Mesh(np.array(devices, object), ("data",))


def form_of(mesh, chip, *groups, kind="all-reduce") -> Traffic:
    collective = Collective(kind, 8.0, 2, groups, 3, "jit(step)/add")
    (traffic,) = sum_traffic([collective, collective], mesh, chip)
    assert (traffic.payload_bytes, traffic.elements, traffic.operations) == (48.0, 12, 6)
    return traffic


@pytest.mark.parametrize(
    ("chip", "shape", "links"),
    [
        ("v5e", (4, 4), 2),
        ("v5e", (4, 16), 3),
        ("v5e", (16, 16), 4),
        ("v5e", (1, 8), 1),
        ("v5p", (2, 2, 4), 3),
        ("v5p", (4, 4, 8), 6),
    ],
)
def test_closed_axes_have_two_links_open_ones_one(chip, shape, links):
    everyone = tuple(range(int(np.prod(shape))))
    traffic = form_of(mesh_of(shape), CHIPS[chip], everyone)
    assert (traffic.links, traffic.chips, traffic.group_size) == (
        links,
        len(everyone),
        len(everyone),
    )


def test_a_group_uses_the_axes_that_it_spans():
    mesh = mesh_of((16, 16))
    row = form_of(mesh, V5E, tuple(range(16)), tuple(range(16, 32)))
    assert (row.links, row.chips, row.groups_per_chip) == (2, 16, 1)
    part_of_a_column = form_of(mesh, V5E, (0, 16, 32, 48))
    assert (part_of_a_column.links, part_of_a_column.chips) == (1, 4)


def test_devices_of_a_chip_share_its_links():
    mesh = mesh_of((2, 2, 1), per_chip=2)
    together = form_of(mesh, CHIPS["tpu7x"], tuple(range(8)))
    assert (together.chips, together.groups_per_chip, together.links) == (4, 1, 2)
    apart = form_of(mesh, CHIPS["tpu7x"], (0, 2, 4, 6), (1, 3, 5, 7))
    assert (apart.chips, apart.groups_per_chip) == (4, 2)
    within = form_of(mesh, CHIPS["tpu7x"], (0, 1), (2, 3), (4, 5), (6, 7))
    assert (within.chips, within.link_bytes(), within.link_seconds(CHIPS["tpu7x"])) == (1, 0, 0)


def test_slices_are_told_apart():
    mesh = mesh_of((2, 2), slices=2)
    spanning = form_of(mesh, V5E, tuple(range(8)))
    assert (spanning.chips, spanning.slices, spanning.group_size) == (4, 2, 8)
    inside = form_of(mesh, V5E, (0, 1, 2, 3))
    assert (inside.chips, inside.slices) == (4, 1)
    sent = form_of(mesh, V5E, kind=BETWEEN_SLICES)
    assert (sent.slices, sent.links, sent.groups_per_chip) == (2, 0, 1)


def test_devices_without_coordinates_are_in_a_row():
    traffic = form_of(Mesh(np.array(jax.devices()), ("data",)), V5E, tuple(range(8)))
    assert (traffic.chips, traffic.links) == (8, 1)


def test_efficiency_is_the_ratio_of_bounds_without_overlap():
    small = bounds_of(traffic=[ALL_REDUCE])
    large = bounds_of(traffic=[dataclasses.replace(ALL_REDUCE, payload_bytes=9e9)])
    assert scaling_efficiency(small, large) == pytest.approx((1 + 0.015) / (1 + 0.15))


def test_flops_of_an_image_are_those_of_the_formula():
    size = EncoderSize(width=768, layers=12, mask_start_layer=8, num_patches=900, num_proposals=100)
    vision = CLIP_SIZES["ViT-B-16"].vision
    counted = vision.step_flops(MaskingSpec(8, 480), 100)
    assert counted == step_flops(size)
