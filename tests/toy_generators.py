"""A network of one convolution that proposes regions by colour, and jobs of it."""

import dataclasses

import numpy as np
from jax import lax

from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.proposals.precompute_shards import PrecomputeJob
from tests.precompute_jobs import DrawnSource, make_job

NUM_QUERIES, NUM_CLASSES = 5, 2
SIZES = ((24, 40), (40, 24), (22, 37))
"""The first and the last are padded to the same size."""


@dataclasses.dataclass(frozen=True)
class ToyNetwork:
    align_corners: bool = True

    def __call__(self, parameters, images, inside):
        pixels = (images / 255 - 0.5) * inside[..., None]
        dimensions = ("NHWC", "HWIO", "NCHW")
        logits = lax.conv_general_dilated(
            pixels, parameters["kernel"], (4, 4), "VALID", dimension_numbers=dimensions
        )
        return logits, logits.mean((2, 3))[..., None] * parameters["classes"][None]


class PadToEights:
    """Images are read at their size and padded to multiples of eight."""

    def resize(self, image):
        return image

    def padded_size(self, input_size):
        height, width = (-(-side // 8) * 8 for side in input_size)
        return height, width


def toy_parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(4, 4, 3, NUM_QUERIES)).astype(np.float32),
        "classes": rng.normal(size=(NUM_QUERIES, NUM_CLASSES + 1)).astype(np.float32) * 9,
    }


def toy_generator(network=ToyNetwork(), images_per_device=1) -> DeviceGenerator:
    return DeviceGenerator("toy", "v1", network, PadToEights(), toy_parameters, images_per_device)


def toy_job(folder, num_examples=20, bad=(), **changes) -> PrecomputeJob:
    """Photos of three sizes; `changes` are fields of PrecomputeJob."""
    source = DrawnSource(num_examples, SIZES, bad)
    fields = {"source": source, "generator": toy_generator(), "shard_size": 6}
    return make_job(folder, num_examples, **(fields | changes))
