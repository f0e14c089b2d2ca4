"""Towers of each kind side by side: what reading an image with many proposals takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.timing import Timings, ratio_of_neighbours, seconds_of
from maft_jax.config import Config
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import EncoderSettings
from maft_jax.models.encoder_setup import compute_dtype
from maft_jax.runtime.sharding import one_device_mesh

TOWERS = ("ViT-B-16", "siglip2-base-patch16-512", "convnext_base_w_320")
"""IP-CLIP, with which the others are compared, and one tower of each kind that pools."""
NUM_PROPOSALS = (100, 1000)


def measure_encoders(config: Config, options: BenchmarkOptions) -> dict:
    """`encode_both` of TOWERS with random weights, on one device; all take turns.

    Images have config.model.image_size pixels per side; there are config.batch_size of them.
    """
    dtype = compute_dtype(config.model.compute_dtype)
    rng = np.random.default_rng(0)
    size, batch_size = config.model.image_size, config.batch_size
    images = jnp.asarray(rng.normal(size=(batch_size, size, size, 3)), jnp.float32)
    found = {}
    for count in NUM_PROPOSALS:
        shape = (batch_size, count, size // 4, size // 4)
        masks = jnp.asarray(rng.integers(0, 256, shape, np.uint8))
        runs = {tower: _make_run(tower, config, dtype, images, masks) for tower in TOWERS}
        for _ in range(1 + options.warmup):  # the first compiles
            for run in runs.values():
                run()
        rounds = [[seconds_of(run) for run in runs.values()] for _ in range(options.steps)]
        timings = [Timings(seconds) for seconds in zip(*rounds, strict=True)]
        found[str(count)] = {
            tower: timing.summary(batch_size)
            | {"times_ip_clip": ratio_of_neighbours(timings[0], timing)}
            for tower, timing in zip(TOWERS, timings, strict=True)
        }
    return {
        "image_size": size,
        "batch_size": batch_size,
        "compute_dtype": dtype.name,
        "num_proposals": found,
    }


def _make_run(tower: str, config: Config, dtype, images: jax.Array, masks: jax.Array):
    vision = CLIP_SIZES[tower].vision
    masking = dataclasses.replace(vision.default_masking, image_size=config.model.image_size)
    settings = EncoderSettings(masking, one_device_mesh(), dtype, config.model.attention)
    encoder = vision.make_encoder(settings)
    parameters = encoder.in_compute_dtype(vision.init(jax.random.key(0)))
    encode = jax.jit(encoder.encode_both)
    return lambda: jax.block_until_ready(encode(parameters, images, masks))
