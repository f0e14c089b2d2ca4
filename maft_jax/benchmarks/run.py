"""Runs what was asked for, one after the other, and says on what it ran."""

import dataclasses
import datetime
import json
import os
import platform
import re
from pathlib import Path

import jax

from maft_jax.benchmarks.encoders import measure_encoders
from maft_jax.benchmarks.evaluation import measure_evaluation, peaks_of_processes
from maft_jax.benchmarks.input import cores_for, measure_input
from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.precompute import measure_precompute
from maft_jax.benchmarks.step import measure_step
from maft_jax.config import Config
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.runtime.versions import versions


def run_benchmark(config: Config, options: BenchmarkOptions) -> dict:
    """What the JSON file holds: a section for each part of options.what, and its provenance.

    Raises:
        ValueError: weights, data or settings cannot work, or there is nothing to compare with.
    """
    results: dict = {
        "provenance": provenance(),
        "options": dataclasses.asdict(options),
        "config": dataclasses.asdict(config),
    }
    if {"step", "evaluation"} & set(options.what):
        model = load_model(config)
        if "step" in options.what:
            results["step"] = measure_step(model, options)
        if "evaluation" in options.what:
            results["evaluation"] = measure_evaluation(model, options)
            if options.compare_torch and model.device.platform == "cpu":
                results["evaluation"]["peak_bytes_alone"] = peaks_of_processes(model)
    if "input" in options.what:
        results["input"] = measure_input(config, options)
        if "step" in results:
            results["input"]["cores_for_the_step"] = cores_for(results["step"], results["input"])
    if "precompute" in options.what:
        results["precompute"] = measure_precompute(config, options)
    if "encoders" in options.what:
        results["encoders"] = measure_encoders(config, options)
    return results


def provenance() -> dict:
    """Device, host, versions and commit of this code, and when."""
    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "runtime": device.client.platform_version,
        },
        "host": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "versions": versions(),
    }


def _processor() -> str:
    """The name that Linux has for it, else what Python says."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def write_results(results: dict, path: str) -> None:
    """As JSON, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n")
