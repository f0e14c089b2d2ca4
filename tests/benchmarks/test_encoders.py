"""Encoders side by side: numbers of each, and what is printed of them."""

import dataclasses

import jax.numpy as jnp
import pytest

from maft_jax.benchmarks import encoders
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.report import describe_part
from maft_jax.config import Config
from maft_jax.config.sections import ModelConfig


@pytest.mark.slow
def test_towers_take_turns_on_the_same_images(monkeypatch):
    towers = ("tiny", "siglip_tiny-random", "convnext_tiny-random")
    monkeypatch.setattr(encoders, "TOWERS", towers)
    monkeypatch.setattr(encoders, "NUM_PROPOSALS", (3, 5))
    config = dataclasses.replace(Config(), model=ModelConfig(image_size=64), batch_size=2)
    options = BenchmarkOptions(what=("encoders",), steps=2, warmup=0)
    found = encoders.measure_encoders(config, options)
    assert (found["image_size"], found["batch_size"]) == (64, 2)
    assert found["compute_dtype"] == jnp.dtype(jnp.float32).name
    assert list(found["num_proposals"]) == ["3", "5"]
    for times in found["num_proposals"].values():
        assert tuple(times) == towers and times["tiny"]["times_ip_clip"] == 1
        assert all(x["runs"] == 2 and x["p50_seconds"] > 0 for x in times.values())
    printed = describe_part("encoders", "encoders", found)
    assert "5 proposals      convnext_tiny-random" in printed and "1.000 of IP-CLIP's" in printed
