"""A network of one convolution that proposes regions by colour, and jobs of it."""

import dataclasses
import time

import jax
import numpy as np
from jax import lax

from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_shards import PrecomputeJob
from tests.precompute_jobs import DrawnSource, make_job

NUM_QUERIES, NUM_CLASSES = 5, 2
SIZES = ((24, 40), (40, 24), (22, 37))
"""The first and the last are padded to the same size."""


@dataclasses.dataclass(frozen=True)
class ToyNetwork:
    def __call__(self, parameters, images, sizes):
        dimensions = ("NHWC", "HWIO", "NCHW")
        logits = lax.conv_general_dilated(
            images / 255 - 0.5, parameters["kernel"], (4, 4), "VALID", dimension_numbers=dimensions
        )
        return logits, logits.mean((2, 3))[..., None] * parameters["classes"][None]


def toy_parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(4, 4, 3, NUM_QUERIES)).astype(np.float32),
        "classes": rng.normal(size=(NUM_QUERIES, NUM_CLASSES + 1)).astype(np.float32) * 9,
    }


def toy_generator(images_per_device=1) -> DeviceGenerator:
    return DeviceGenerator(
        name="toy",
        fingerprint="v1",
        network=ToyNetwork(),
        prepare=lambda image: image,
        load=toy_parameters,
        divisor=8,
        align_corners=True,
        images_per_device=images_per_device,
    )


def toy_job(folder, num_examples=20, bad=(), **changes) -> PrecomputeJob:
    """Photos of three sizes; `changes` are fields of PrecomputeJob."""
    source = DrawnSource(num_examples, SIZES, bad)
    fields = {"source": source, "generator": toy_generator(), "shard_size": 6}
    return make_job(folder, num_examples, **(fields | changes))


class SlowSource(DrawnSource):
    """Takes some seconds to read each photo."""

    def __init__(self, num_examples: int, seconds: float):
        super().__init__(num_examples, SIZES)
        self._seconds = seconds

    def __getitem__(self, index):
        time.sleep(self._seconds)
        return super().__getitem__(index)


def run_slow_job(folder: str, num_examples: str, seconds: str, num_devices: str) -> None:
    """In a process of its own, whose words these are."""
    jax.config.update("jax_num_cpu_devices", int(num_devices))
    count = int(num_examples)
    source = SlowSource(count, float(seconds))
    precompute(toy_job(folder, count, source=source, shard_size=2), num_workers=2)
