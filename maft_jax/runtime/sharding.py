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

from maft_jax.config.sections import MeshConfig
from maft_jax.runtime.mesh_axes import (
    FSDP,
    MESH_AXES,
    OVER_IMAGES,
    ShardingRule,
    num_batch_shards,
)

MIN_FSDP_SIZE = 2**14


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


def one_device_mesh() -> Mesh:
    """Of this process's first device alone."""
    return make_mesh(MeshConfig(), jax.local_devices()[:1])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension over data and fsdp."""
    return NamedSharding(mesh, OVER_IMAGES)


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


def place(tree, mesh: Mesh, rules: Sequence[ShardingRule]):
    """Puts arrays of the host, which all processes have alike, where `tree_shardings` says."""

    def put(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, tree_shardings(tree, mesh, rules))


def place_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The same, a copy on every device."""
    return jax.make_array_from_callback(
        array.shape, replicated(mesh), lambda index: np.asarray(array)[index]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree, mesh: Mesh, rules: Sequence[ShardingRule]):
    """A NamedSharding for every leaf, by the rules of its encoder, its path and its shape.

    Works on parameters, on optimizer states (whose paths end in the parameters' paths) and on
    whole train states; leaves need only `.shape`.
    """

    def leaf_sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, leaf_partition(name, np.shape(leaf), mesh, rules))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def leaf_partition(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[ShardingRule]
) -> PartitionSpec:
    """The first rule that matches, then fsdp over the largest remaining dimension it divides.

    Leaves below MIN_FSDP_SIZE stay whole: gathering them costs more than they weigh.

    Raises:
        ValueError: an axis of the mesh does not divide the dimension that a rule gives it.
    """
    rule = next((rule for pattern, rule in rules if re.search(pattern, path)), PartitionSpec())
    axes = [*rule, *[None] * (len(shape) - len(rule))]
    for dimension, axis in enumerate(axes):
        if axis is not None and shape[dimension] % mesh.shape[axis]:
            raise ValueError(
                f"config.mesh.{axis}={mesh.shape[axis]} does not divide dimension {dimension} of "
                f"{path} {shape}; choose a divisor of {shape[dimension]}"
            )
    axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in axes]
    if mesh.shape[FSDP] > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        free = [
            dimension
            for dimension, axis in enumerate(axes)
            if axis is None and shape[dimension] % mesh.shape[FSDP] == 0
        ]
        if free:
            axes[max(free, key=lambda dimension: shape[dimension])] = FSDP
    return PartitionSpec(*axes)


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Every device must get the same number of images in every part of a batch.

    Raises:
        ValueError: it does not.
    """
    devices = num_batch_shards(mesh)
    if batch_size % (devices * accumulation_steps):
        raise ValueError(
            f"config.batch_size={batch_size}: expected a multiple of "
            f"{devices * accumulation_steps} (mesh data x fsdp = {devices}, "
            f"accumulation_steps = {accumulation_steps})"
        )
