"""Plans made by hand, whose numbers are easy to follow."""

from maft_jax.planning.chips import GIB
from maft_jax.planning.compiled_step import StepCosts
from maft_jax.planning.plan import Plan
from maft_jax.planning.topology import parse_topology
from maft_jax.planning.traffic import Traffic

ALL_REDUCE = Traffic(
    kind="all-reduce",
    payload_bytes=9e8,
    elements=225_000_000,
    operations=3,
    group_size=4,
    chips=4,
    slices=1,
    groups_per_chip=1,
    links=2,
)


def make_costs(fits: bool = True, gib_per_image: float = 1.0, images: int = 2) -> StepCosts:
    """3 GiB and so much per image; 0.5 s of arithmetic and 1 s of memory traffic on v5e."""
    parts = {"trainable parameters": 3.0 * GIB, "batch": 0.0}
    parts["temporaries"] = gib_per_image * images * GIB
    if not fits:
        return StepCosts(False, parts, 225_000_000, 9e8, error="RESOURCE_EXHAUSTED: too much")
    return StepCosts(
        True,
        parts,
        225_000_000,
        9e8,
        donated_bytes=2.7e9,
        flops=98.5e12,
        hbm_bytes=819e9,
        traffic=(ALL_REDUCE,),
        compile_seconds=60.0,
    )


def make_plan(
    topology: str = "v5e:2x2", costs: StepCosts | None = None, images: int = 2, **changes
) -> Plan:
    """`images` per device."""
    num_devices = parse_topology(topology).num_devices
    values = {
        "topology": topology,
        "mesh": {"data": num_devices, "fsdp": 1, "model": 1},
        "batch_size": images * num_devices,
        "batch_per_device": images,
        "accumulation_steps": 1,
        "remat": False,
        "num_steps": 7200,
        "model": "12 layers of width 768, patches of 16",
        "image_size": 480,
        "image_flops": 9_850_000_000_000,
        "costs": costs or make_costs(images=images),
        "assumptions": ("at most 24 classes in an image",),
    }
    return Plan(**(values | changes))
