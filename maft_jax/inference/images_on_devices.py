"""Arrays of a batch of images on the devices of a mesh, and functions of each image."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int32

from maft_jax.runtime.mesh_axes import OVER_IMAGES
from maft_jax.runtime.sharding import batch_sharding


def map_images(mesh, function, *arrays):
    """`function` on each image, one after the other on each device of the mesh."""

    def map_local(*local):
        return lax.map(lambda image_arrays: function(*image_arrays), local)

    if mesh is None:
        return map_local(*arrays)
    return jax.shard_map(
        map_local, mesh=mesh, in_specs=OVER_IMAGES, out_specs=OVER_IMAGES, check_vma=False
    )(*arrays)


def same_row(row: int, count: int, mesh: Mesh | None) -> Int32[Array, " b"]:
    """The row at which the arrays of so many images begin, where the images lie."""
    rows = jnp.full(count, row, jnp.int32)
    return rows if mesh is None else place(rows, batch_sharding(mesh))


def place(tree, shardings):
    """Places what is not in its place; `shardings` is a tree, or one sharding for all leaves."""
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: _put(leaf, shardings), tree)
    return jax.tree.map(_put, tree, shardings)


def _put(leaf, sharding: NamedSharding):
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        in_place = leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    else:
        in_place = False  # on the host, or nowhere yet inside of somebody's jit
    return leaf if in_place else jax.device_put(leaf, sharding)
