"""All that docs/performance.md reports of a device, in one run of so many minutes."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from maft_jax.benchmarks import torch_device, torch_step
from maft_jax.benchmarks.evaluation import measure_evaluation
from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.run import provenance
from maft_jax.benchmarks.step import measure_step
from maft_jax.benchmarks.training import measure_training
from maft_jax.config import Config

logger = logging.getLogger(__name__)

TRAINING_STEPS = 1000
LONGEST_TRAINING = 0.2
"""Of the time for everything: a slow pipeline ends after it, with fewer steps."""


@dataclasses.dataclass(frozen=True)
class SuitePart:
    """One measurement of the recipe with some settings changed."""

    name: str
    measured: str = "step"
    """step, training or evaluation."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    times_batch: int = 1
    """The batch, in batches of the configuration."""
    beside_torch: bool = False


def _step_parts() -> list[SuitePart]:
    """Blocks in a loop or not, attention fused or not, batches of 16 and 64."""
    parts = []
    for attention in ("auto", "xla"):
        for scanned in (True, False):
            for times_batch in (1, 4):
                settings = {"model.attention": attention, "model.scan_blocks": scanned}
                name = " ".join(f"{key}={value}" for key, value in settings.items())
                name = f"step, {name}, batch x {times_batch}"
                parts.append(SuitePart(name, "step", settings, times_batch))
    return parts


def _suite() -> tuple[SuitePart, ...]:
    """What matters most is first, since what does not find time is left out."""
    recipe, large, *others = _step_parts()
    return (
        dataclasses.replace(recipe, beside_torch=True),
        large,
        SuitePart(f"{TRAINING_STEPS} steps with real input", "training"),
        SuitePart(
            "evaluation, 171 classes",
            "evaluation",
            {"data.dataset": "coco_stuff"},
            beside_torch=True,
        ),
        *others,
    )


SUITE = _suite()


def run_suite(
    config: Config,
    options: BenchmarkOptions,
    seconds: float,
    started: float,
    on_part: Callable[[dict, str], None],
) -> dict:
    """Measures one part after the other while there is time, and says which found none.

    A part that fails, for want of memory say, does not keep others from being measured.

    Args:
        seconds: for everything, from `started` on, a time of time.monotonic(). A part begins if
            as much is left as the longest before it took; the first one always does.
        on_part: is called with all results so far, and the name of the newest.

    Returns:
        "parts" with the results of each by name, "failed" with messages, "left_out" with names,
        and how it was measured.

    Raises:
        ValueError: there is nothing to compare with.
    """
    if options.compare_torch:
        torch_step.check_comparable(load_model(config))
    results: dict = {
        "provenance": provenance(),
        "options": dataclasses.asdict(options),
        "config": dataclasses.asdict(config),
        "minutes": seconds / 60,
        "parts": {},
        "failed": {},
        "left_out": [part.name for part in SUITE],
    }
    longest = 0.0
    for number, part in enumerate(SUITE):
        left = started + seconds - time.monotonic()
        if number and left < longest:
            logger.info("%.0f s are left: no time for %s", left, results["left_out"])
            break
        logger.info("%d of %d, %.0f s left: %s", number + 1, len(SUITE), left, part.name)
        began = time.monotonic()
        results["left_out"].remove(part.name)
        try:
            results["parts"][part.name] = _measure(config, options, part, seconds)
        except (RuntimeError, ValueError) as error:  # also those of devices without memory
            logger.exception("%s", part.name)
            results["failed"][part.name] = str(error).partition("\n")[0]
        took = time.monotonic() - began
        longest = max(longest, took)
        results["seconds"] = time.monotonic() - started
        on_part(results, part.name)
    return results


def _measure(config: Config, options: BenchmarkOptions, part: SuitePart, seconds: float) -> dict:
    config = _with_settings(config, part)
    options = dataclasses.replace(
        options, compare_torch=options.compare_torch and part.beside_torch
    )
    model = load_model(config)
    peak_before = model.peak_bytes()
    try:
        if part.measured == "training":
            found = measure_training(model, TRAINING_STEPS, LONGEST_TRAINING * seconds)
        else:
            measure = measure_step if part.measured == "step" else measure_evaluation
            found = measure(model, options)
    finally:
        if options.compare_torch:
            torch_device.release_memory()
    memory = found.get("memory", {})
    if memory.get("device_peak_bytes") == peak_before:  # of an earlier part, which needed more
        memory["device_peak_bytes"] = None
    return {"measured": part.measured, "settings": dict(part.settings), part.measured: found}


def _with_settings(config: Config, part: SuitePart) -> Config:
    config = dataclasses.replace(config, batch_size=part.times_batch * config.batch_size)
    for name, value in part.settings.items():
        section, field = name.split(".")
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: changed})
    return config
