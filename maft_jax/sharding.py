"""The mesh, and where every array lives on it.

Axes: `data` splits the batch; `fsdp` splits the batch and the parameters; `model` splits
attention heads and MLPs. All axes are Auto and every array carries a NamedSharding, so no ambient
mesh is needed.
"""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maft_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "model")

MIN_FSDP_SIZE = 2**14

TENSOR_PARALLEL_RULES = (
    (r"in_proj/kernel$", 2),
    (r"in_proj/bias$", 1),
    (r"out_proj/kernel$", 0),
    (r"c_fc/kernel$", 1),
    (r"c_fc/bias$", 0),
    (r"c_proj/kernel$", 0),
)
"""(path, dimension that `model` splits), first match; what matches nothing is not split by it."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices (default: all) as data x fsdp x model.

    Of several slices, `data` alone goes from one to the next: the network between them is slow.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple of
            the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    inner = config.fsdp * config.model
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices):
        raise ValueError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} x model={config.model} does "
            f"not make {len(devices)}, the number of devices"
        )
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if data % slices:
        raise ValueError(
            f"config.mesh: data={data} is not a multiple of the number of slices, {slices}; fsdp x "
            "model must divide the devices of one slice"
        )
    sizes = (data // slices, config.fsdp, config.model)
    options = {"allow_split_physical_axes": True}  # or fsdp=8 is refused on a torus of 16 x 16
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(sizes, devices, **options)
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(sizes, (slices, 1, 1), devices, **options)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf, by its path and shape.

    Works on parameters, on optimizer states (whose paths end in the parameters' paths) and on
    whole train states; leaves need only `.shape`.
    """

    def leaf_sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_partition(name, np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def leaf_partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Tensor parallelism by rule, then fsdp over the largest remaining dimension it divides.

    Leaves below MIN_FSDP_SIZE stay whole: gathering them costs more than they weigh.

    Raises:
        ValueError: `model` does not divide the dimension that a rule gives it.
    """
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape["model"] > 1:
        for rule, dimension in TENSOR_PARALLEL_RULES:
            if re.search(rule, path):
                if shape[dimension] % mesh.shape["model"]:
                    raise ValueError(
                        f"config.mesh.model={mesh.shape['model']} does not divide dimension "
                        f"{dimension} of {path} {shape}; choose a divisor of {shape[dimension]}"
                    )
                axes[dimension] = "model"
                break
    if mesh.shape["fsdp"] > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        free = [
            dimension
            for dimension, axis in enumerate(axes)
            if axis is None and shape[dimension] % mesh.shape["fsdp"] == 0
        ]
        if free:
            axes[max(free, key=lambda dimension: shape[dimension])] = "fsdp"
    return PartitionSpec(*axes)


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Every device must get the same number of images in every part of a batch.

    Raises:
        ValueError: it does not.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulation_steps):
        raise ValueError(
            f"config.batch_size={batch_size}: expected a multiple of "
            f"{devices * accumulation_steps} (mesh data x fsdp = {devices}, "
            f"accumulation_steps = {accumulation_steps})"
        )
