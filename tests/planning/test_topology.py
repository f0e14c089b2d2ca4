"""Names of machines."""

import os
import subprocess
import sys

import pytest

from maft_jax.planning.chips import CHIPS
from maft_jax.planning.topology import parse_topology, prepare_environment


@pytest.mark.parametrize(
    ("name", "chips", "devices", "slices"),
    [
        ("v5e:4x4", 16, 16, 1),
        ("2xv5e:16x16", 512, 512, 2),
        ("v4:8x8x8", 512, 512, 1),
        ("v5p:2x2x1", 4, 4, 1),
        ("tpu7x:2x2x1", 4, 8, 1),
        ("v5p:16x16x24", 6144, 6144, 1),
    ],
)
def test_machines_by_name(name, chips, devices, slices):
    topology = parse_topology(name)
    assert (topology.num_chips, topology.num_devices, topology.num_slices) == (
        chips,
        devices,
        slices,
    )
    assert topology.name == name


def test_marketing_names():
    assert parse_topology("Ironwood:2x2x1") == parse_topology("tpu7x:2x2x1")
    assert parse_topology("3xtrillium:4x4").name == "3xv6e:4x4"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5e", "CHIP:SHAPE"),
        ("v9:2x2", "with a chip of"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v4:4x4", "3 dimensions"),
        ("v5e:16x32", "2xv5e:16x16"),
        ("v5e:0x4", "2 dimensions"),
        ("0xv5e:4x4", "2 dimensions"),
    ],
)
def test_other_names_are_refused_with_what_was_expected(name, told):
    with pytest.raises(ValueError, match=told):
        parse_topology(name)


def test_the_environment_cannot_be_prepared_too_late():
    with pytest.raises(RuntimeError, match="before JAX"):
        prepare_environment()


def test_without_the_compiler_the_error_says_what_to_install():
    script = (
        "from maft_jax.planning import topology\n"
        "topology.prepare_environment()\n"
        "topology.importlib.util.find_spec = lambda name: None\n"
        "try:\n    topology.parse_topology('v5e:2x2').devices()\n"
        "except ValueError as error:\n    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "pip install 'maft_jax[plan]'" in found.stdout


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_chips_are_plausible(chip):
    """Guards against a slip of a power of ten."""
    assert 1e14 < chip.flops < 3e15
    assert 100 < chip.flops / chip.hbm_bandwidth < 600
    assert 4 < chip.hbm_bandwidth / (2 * len(chip.largest) * chip.link_bandwidth) < 15
    assert chip.link_bandwidth > 5 * chip.dcn_bandwidth
    assert chip.source.startswith("https://")
