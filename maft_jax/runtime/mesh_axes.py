"""The axes of the mesh by name, and how arrays lie along them."""

from jax.sharding import Mesh, PartitionSpec

DATA, FSDP, MODEL = "data", "fsdp", "model"
"""Splits the batch; the batch and the parameters; attention heads and MLPs."""

ShardingRule = tuple[str, PartitionSpec]
"""A regular expression over parameter paths, and how what it matches lies on the mesh."""

MESH_AXES = (DATA, FSDP, MODEL)

OVER_IMAGES = PartitionSpec((DATA, FSDP))
"""The leading dimension is that of the images."""


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape[DATA] * mesh.shape[FSDP]
