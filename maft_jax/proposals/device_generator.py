"""Proposals of a network that JAX runs: images in batches over the devices, kept masks out.

What leaves the device are the masks of the records: uint8 at their grid points, best first.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Float64, Int32, UInt8

from input_pipeline.examples import PROPOSAL_STRIDE, Example, proposal_grid_size
from maft_jax.config.sections import MeshConfig
from maft_jax.models.generators.proposing import masks_at, pixel_weights, proposal_scores
from maft_jax.proposals.generator import MaskLogits, Proposals
from maft_jax.runtime.mesh_axes import OVER_IMAGES
from maft_jax.runtime.sharding import batch_sharding, make_mesh, one_device_mesh, replicated

Sizes = tuple[int, int]
"""(height, width)."""


@runtime_checkable
class MaskNetwork(Hashable, Protocol):
    """A network as a static object that gets its parameters with every call."""

    def __call__(
        self,
        parameters: Any,
        images: UInt8[Array, "b padded_h padded_w 3"],
        sizes: Int32[Array, "b 2"],
    ) -> tuple[Float[Array, "b q h w"], Float[Array, "b q c"]]:
        """Mask logits at a quarter of the padded size and class logits, "no object" last.

        `sizes` are (height, width) of the images inside of their padding, which has zeros.
        """
        ...


@dataclass(frozen=True, eq=False)
class DeviceGenerator:
    """The BatchedGenerator of a network.

    `prepare` brings an image to the size at which the network reads it, which is padded below and
    to the right to multiples of `divisor`. With `align_corners` the corner points of mask logits
    lie on the corner pixels of the padded image, else each in the middle of its four by four
    pixels. `load` reads the parameters, when they are first needed.

    All queries are scored by `proposal_scores`. Class logits keep the column of "no object", which
    is part of the softmax.
    """

    name: str
    fingerprint: str
    network: MaskNetwork
    prepare: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "input_h input_w 3"]]
    load: Callable[[], Any]
    divisor: int = 32
    align_corners: bool = False
    images_per_device: int = 1

    @property
    def num_devices(self) -> int:
        return self._mesh.size

    def padded_size(self, input_size: Sizes) -> Sizes:
        height, width = (-(-side // self.divisor) * self.divisor for side in input_size)
        return height, width

    def start(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], num_proposals: int
    ) -> Callable[[], list[Proposals]]:
        results = self._run(self._mesh, self._parameters, images, num_proposals)
        return functools.partial(_fetch, results, [image.shape[:2] for image in images])

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """Of one image, on one device, with the logits of its masks."""
        image = self.prepare(example.image)
        results = self._run(*self._alone, [image], num_proposals, keeps_mask_logits=True)
        *results, mask_logits = results
        size = image.shape[:2]
        (made,) = _fetch(results, [size])
        (values,) = jax.device_get(mask_logits)
        logits = MaskLogits(values, size, self.padded_size(size), self.align_corners)
        return dataclasses.replace(made, mask_logits=logits)

    def _run(self, mesh: Mesh, parameters, images, num_proposals, *, keeps_mask_logits=False):
        sizes = [image.shape[:2] for image in images]
        padded = self.padded_size(sizes[0])
        batch = np.zeros((len(images), *padded, 3), np.uint8)
        for row, image in zip(batch, images, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        axes = [
            np.stack([self._grid_weights(size[axis], padded[axis]) for size in sizes])
            for axis in (0, 1)
        ]
        arrays = jax.device_put((batch, np.array(sizes), *axes), batch_sharding(mesh))
        static = self.network, num_proposals, keeps_mask_logits
        return _propose(static, mesh, parameters, *arrays)

    def _grid_weights(self, side: int, padded_side: int) -> Float32[np.ndarray, "points logits"]:
        """Of the records' grid points; images of one padded size have as many rows."""
        shape = (-(-padded_side // PROPOSAL_STRIDE),) * 2
        return pixel_weights(
            _grid_points(side), padded_side, shape, align_corners=self.align_corners
        )

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """Of this process alone: other processes have examples of their own."""
        return make_mesh(MeshConfig(), jax.local_devices())

    @functools.cached_property
    def _parameters(self):
        return jax.device_put(self.load(), replicated(self._mesh))

    @functools.cached_property
    def _alone(self) -> tuple[Mesh, Any]:
        """One device and the parameters on it."""
        mesh = one_device_mesh()
        if self.num_devices == 1:
            return mesh, self._parameters
        return mesh, jax.device_put(self.load(), replicated(mesh))


def _grid_points(side: int) -> Float64[np.ndarray, " points"]:
    """Where the records' grid points lie along a side of the image, in its pixels."""
    num_points = -(-side // PROPOSAL_STRIDE)
    return np.arange(num_points) * (side - 1) / max(num_points - 1, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _propose(static, mesh, parameters, *arrays):
    """Masks [b, n, grid_h, grid_w] uint8, scores [b, n] and class logits [b, n, c], best first.

    And mask logits [b, n, h, w], where they are kept.
    """
    return jax.shard_map(
        functools.partial(_propose_local, *static),
        mesh=mesh,
        in_specs=(PartitionSpec(), *[OVER_IMAGES] * len(arrays)),
        out_specs=OVER_IMAGES,
        check_vma=False,
    )(parameters, *arrays)


def _propose_local(
    network, num_proposals, keeps_mask_logits, parameters, images, sizes, rows, columns
):
    predicted = network(parameters, images, sizes)
    mask_logits, class_logits = (logits.astype(jnp.float32) for logits in predicted)
    masks = masks_at(mask_logits, rows, columns)
    scores = proposal_scores(mask_logits, class_logits, sizes)
    order = jnp.argsort(-scores, axis=1, stable=True)[:, :num_proposals]
    best = jnp.round(masks * 255).astype(jnp.uint8)
    results = (best, scores, class_logits, *((mask_logits,) if keeps_mask_logits else ()))
    return tuple(jax.vmap(lambda array, kept: array[kept])(array, order) for array in results)


def _fetch(results, sizes: Sequence[Sizes]) -> list[Proposals]:
    """Waits for the results; each image's masks lose the grid of its padding."""
    made = []
    for size, masks, scores, logits in zip(sizes, *jax.device_get(results), strict=True):
        height, width = proposal_grid_size(*size)
        made.append(Proposals(masks[:, :height, :width], scores, logits, size, on_grid=True))
    return made
