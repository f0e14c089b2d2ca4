"""The mesh, and where every array lives on it.

Axes: `data` splits the batch; `fsdp` splits the batch and the parameters; `model` splits
attention heads and MLPs. All axes are Auto and every array carries a NamedSharding, so no ambient
mesh is needed.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

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

    Of several slices each is a part of the data axis, so that fsdp and model stay inside of one.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or slices cannot share data.
    """
    devices = jax.devices() if devices is None else list(devices)
    inner = config.fsdp * config.model
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices):
        raise ValueError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} x model={config.model} does "
            f"not make {len(devices)}, the number of devices"
        )
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % num_slices:
        raise ValueError(
            f"config.mesh: data={data} must be a multiple of the {num_slices} slices, so that fsdp="
            f"{config.fsdp} and model={config.model} stay inside of a slice"
        )
    shape = (data // num_slices, config.fsdp, config.model)
    if num_slices > 1:
        arranged = mesh_utils.create_hybrid_device_mesh(
            shape, (num_slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows_of_process(mesh: Mesh, process_index: int, batch_size: int) -> tuple[int, ...]:
    """Rows of a global batch that lie on the devices of a process, ascending."""
    rows: set[int] = set()
    for device, (part,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        if device.process_index == process_index:
            rows.update(range(batch_size)[part])
    return tuple(sorted(rows))


def share_of_process(mesh: Mesh, process_index: int, batch_size: int) -> tuple[int, int]:
    """Which share of every batch a process reads, and how many equal shares there are.

    Processes read the same share if the devices of one model are spread over them.

    Raises:
        ValueError: processes would need parts of each other's shares.
    """
    shares = _shares(mesh, batch_size)
    return shares.index(rows_of_process(mesh, process_index, batch_size)), len(shares)


def positions_of_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " b"]:
    """Which of the batch's examples, in the order of reading, each row of the global batch has.

    On a torus the mesh weaves the hosts' devices into each other, and so the rows that they read.
    """
    rows = np.concatenate([np.array(share) for share in _shares(mesh, batch_size)])
    return np.argsort(rows)


def _shares(mesh: Mesh, batch_size: int) -> list[tuple[int, ...]]:
    processes = sorted({device.process_index for device in mesh.devices.flat})
    shares = sorted({rows_of_process(mesh, process, batch_size) for process in processes})
    if max(Counter(row for share in shares for row in share).values()) > 1:
        raise ValueError(
            f"config.mesh={dict(mesh.shape)}: processes would need parts of each other's images; "
            "choose fsdp and model so that the devices of a process hold whole models, or that "
            "whole processes hold one"
        )
    return shares


def place(tree, mesh: Mesh):
    """Puts arrays of the host, which all processes have alike, where `tree_shardings` says."""

    def put(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, tree_shardings(tree, mesh))


def place_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The same, a copy on every device."""
    return jax.make_array_from_callback(
        array.shape, replicated(mesh), lambda index: np.asarray(array)[index]
    )


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
