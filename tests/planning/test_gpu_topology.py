"""Machines of NVIDIA's cards by name, what XLA is told of a card, and what is said without XLA."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from jax.sharding import Mesh

from maft_jax.planning import gpu_topology
from maft_jax.planning.bounds import step_bounds
from maft_jax.planning.chips import GIB
from maft_jax.planning.collectives import Collective
from maft_jax.planning.gpu_cards import CARDS
from maft_jax.planning.gpu_topology import gpu_devices, why_no_gpu_compiler
from maft_jax.planning.report import describe
from maft_jax.planning.topology import parse_topology
from maft_jax.planning.traffic import sum_traffic
from tests.planning.plans import make_costs, make_plan


@pytest.mark.parametrize(
    ("name", "canonical", "cards", "hosts"),
    [
        ("h100:8", "h100:8", 8, 1),
        ("2xh100:8", "2xh100:8", 16, 2),
        ("a100:8", "a100-80:8", 8, 1),
        ("A100-40:4", "a100-40:4", 4, 1),
        ("3090:1", "3090:1", 1, 1),
        ("2x3090:2", "2x3090:2", 4, 2),
        ("RTX4090:2", "4090:2", 2, 1),
        ("v100:8", "v100-16:8", 8, 1),
    ],
)
def test_machines_by_name(name, canonical, cards, hosts):
    topology = parse_topology(name)
    assert topology.name == canonical
    assert (topology.num_chips, topology.num_devices, topology.num_slices) == (cards, cards, hosts)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("h100:16", "at most 8 cards; more cards are several hosts, such as 2xh100:8"),
        ("h100:2x4", "1 dimension"),
        ("h100:0", "1 dimension"),
        ("p100:1", r"with a card of \['h100'"),
        ("h100", "CARD:NUMBER such as h100:8"),
    ],
)
def test_other_names_are_refused_with_what_was_expected(name, told):
    with pytest.raises(ValueError, match=told):
        parse_topology(name)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_are_plausible(card):
    """Guards against a slip of a power of ten, and between units."""
    assert 5e13 < card.flops < 3e15
    assert 70 < card.flops / card.hbm_bandwidth < 420
    assert 5 < card.hbm_bandwidth / card.link_bandwidth < 70
    assert card.link_bandwidth > 5 * card.dcn_bandwidth
    assert 14 * GIB < card.memory_bytes < 180 * GIB
    assert card.hbm_bytes == int(0.75 * card.memory_bytes)
    assert (card.float32_flops is None) == card.has_bfloat16
    # Float32 units x 2 x clock: the published float32 peak of all of them is 8 to 90 TFLOP/s.
    assert 8e12 < card.cores * 64 * 2 * card.clock_ghz * 1e9 < 90e12
    assert card.source.startswith("https://www.nvidia.com/") or "images.nvidia.com" in card.source


def test_what_xla_is_told_of_a_card():
    target = CARDS["3090"].target_config()
    for line in (
        "cuda_compute_capability { major: 8 minor: 6 }",
        "core_count: 82",
        "memory_bandwidth: 936000000000",
        "shared_memory_per_core: 102400",
        'device_description_str: "NVIDIA GeForce RTX 3090"',
    ):
        assert line in target
    assert "major: 9 minor: 0 feature_extension" in CARDS["h100"].target_config()
    assert "{" + "{" not in target


@dataclasses.dataclass(frozen=True)
class FakeCard:
    """What a device of the compiler tells of itself."""

    id: int
    process_index: int
    slice_index: int = 0


def traffic_of(name: str, *groups):
    topology = parse_topology(name)
    cards = topology.num_chips // topology.num_slices
    devices = [FakeCard(index, index // cards) for index in range(topology.num_devices)]
    mesh = Mesh(np.array(devices, object), ("data",))
    collective = Collective("all-reduce", 8e9, 2, groups, 1, "jit(step)/add")
    return topology.chip, sum_traffic([collective], mesh, topology.chip)


def bounds_of(name: str, *groups, **changes):
    chip, traffic = traffic_of(name, *groups)
    values = {"flops": None, "hbm_bytes": 0.0, "model_flops": 0.0} | changes
    return step_bounds(chip, traffic=traffic, **values)


def test_nvlink_in_a_host_and_the_network_between_hosts():
    """8 GB: 7/8 of them twice at 450 GB/s; each of eight cards sends an eighth at 50 GB/s."""
    one_host = bounds_of("h100:8", tuple(range(8)))
    assert (one_host.links, one_host.dcn) == (pytest.approx(2 * 7 / 8 * 8 / 450), 0.0)
    two_hosts = bounds_of("2xh100:8", tuple(range(16)))
    assert two_hosts.links == one_host.links
    assert two_hosts.dcn == pytest.approx(2 * 1 / 2 * (8 / 8) / 50)
    assert two_hosts.limit == "links"


def test_cards_of_a_host_share_its_network():
    """25 Gbit/s for the host, however many cards are in it."""
    for name, cards in (("2x3090:1", 1), ("2x3090:4", 4)):
        bounds = bounds_of(name, tuple(range(2 * cards)))
        assert bounds.dcn == pytest.approx(2 * 1 / 2 * 8e9 / (25e9 / 8))


def test_the_formula_counts_where_the_compiler_does_not():
    assert bounds_of("h100:1", (0,), model_flops=989e12).compute == 1.0


def test_cards_without_bfloat16_multiply_in_float32_and_say_so():
    assert bounds_of("v100-16:1", (0,), model_flops=15.7e12).compute == 1.0
    assert "float32 (15.7 TFLOP/s, not 125)" in describe(make_plan("v100-16:1"))
    assert "float32" not in "".join(CARDS["a100-40"].limits)


def test_text_of_a_plan_for_cards():
    costs = dataclasses.replace(make_costs(), flops=None)
    text = describe(make_plan("2xh100:8", costs))
    assert "16 cards in 2 hosts, 16 devices" in text
    assert "fits: 5.00 of 59.33 GiB of memory per device" in text
    assert "unknown: libraries do not say" in text and "memory bytes, by the program's text" in text
    assert "NVLink" in text and "network between hosts" in text and "card-hours" in text
    assert "50.00 GB/s from a card to other hosts (400 Gbit/s for each card" in text
    for word in ("slice", "interconnect", "HBM bytes", "chip"):
        assert word not in text
    assert "PCIe" in describe(make_plan("4090:2")) and " 1 card," in describe(make_plan("l4:1"))


@pytest.mark.parametrize(("gib", "verdict"), [(18.0, "this fits"), (22.0, "this does not fit")])
def test_more_of_the_card_may_be_taken(gib, verdict):
    costs = dataclasses.replace(make_costs(fits=False), error="", hbm={"temporaries": gib * GIB})
    text = describe(make_plan("3090:1", costs))
    assert f"does not fit: at least {gib:.2f} of 17.77 GiB of memory per device" in text
    told = "jax takes 75% of the card's 23.69 GiB; with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 it takes"
    assert f"{told} 21.32 GiB, into which {verdict}" in text
    assert "the compiler says" not in text


@pytest.mark.parametrize("missing", ["jax_cuda12_plugin", "nvidia.cuda_nvcc", "nvidia.cudnn"])
def test_what_is_not_installed_is_named_with_the_cure(missing, monkeypatch):
    def find_spec(name):
        if name == missing:
            if name.startswith("nvidia."):
                raise ModuleNotFoundError("nvidia")
            return None
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    told = rf"{missing}.*needs no GPU: pip install 'maft_jax\[cuda-compile\]'"
    with pytest.raises(ValueError, match=told):
        gpu_devices(CARDS["h100"], 1)
    monkeypatch.setattr(gpu_topology, "_MODULES", ())
    assert why_no_gpu_compiler() is None
