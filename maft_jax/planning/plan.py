"""Plans: what a configuration's train step costs on a topology, and what would fit instead."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.planning.architecture import check_trains
from maft_jax.planning.bounds import StepBounds, step_bounds
from maft_jax.planning.clip_step import plan_clip_step
from maft_jax.planning.compiled_step import StepCosts, compile_step
from maft_jax.planning.generator_step import plan_generator_step
from maft_jax.planning.planned_step import CLASSES_PER_IMAGE, PlannedStep
from maft_jax.planning.topology import Topology, parse_topology
from maft_jax.planning.traffic import Traffic
from maft_jax.runtime import sharding, stop_requests
from maft_jax.runtime.mesh_axes import num_batch_shards

logger = logging.getLogger(__name__)

LARGEST_FSDP = 8

STEPS: dict[str, Callable[[Config, Mesh], PlannedStep]] = {
    "train": plan_clip_step,
    "train_generator": plan_generator_step,
}
"""What is planned, by config.task."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One compiled step; plain numbers and names, so that it can be kept as JSON."""

    topology: str
    mesh: dict[str, int]
    batch_size: int
    """Images per step over all devices."""
    batch_per_device: int
    accumulation_steps: int
    remat: bool
    num_steps: int
    model: str
    image_size: int
    image_flops: int
    """Of training on one image, by formula."""
    costs: StepCosts
    assumptions: tuple[str, ...]

    @property
    def machine(self) -> Topology:
        return parse_topology(self.topology)

    @property
    def formula_flops(self) -> float:
        """Of a device and step."""
        return self.batch_size / self.machine.num_devices * self.image_flops

    @property
    def bounds(self) -> StepBounds:
        """Of a step that fits."""
        return step_bounds(
            self.machine.chip,
            flops=self.costs.flops,
            hbm_bytes=self.costs.hbm_bytes,
            traffic=self.costs.traffic,
            model_flops=self.formula_flops,
        )

    @property
    def images_per_second(self) -> float:
        """At most."""
        return self.batch_size / self.bounds.overlapped

    @property
    def hours(self) -> float:
        """At least, for all steps."""
        return self.num_steps * self.bounds.overlapped / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values; what follows from others is there for people, and not read back."""
        values = dataclasses.asdict(self)
        if self.costs.fits:
            bounds = self.bounds
            values["bounds"] = dataclasses.asdict(bounds) | {
                "overlapped": bounds.overlapped,
                "not_overlapped": bounds.not_overlapped,
                "limit": bounds.limit,
                "mfu": bounds.mfu,
                "images_per_second": self.images_per_second,
                "hours": self.hours,
                "chip_hours": self.hours * self.machine.num_chips,
                "device_hours": self.hours * self.machine.num_devices,
            }
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        values = {name: value for name, value in values.items() if name != "bounds"}
        costs = dict(values["costs"])
        costs["traffic"] = tuple(Traffic(**one) for one in costs["traffic"])
        values["costs"] = StepCosts(**costs)
        values["assumptions"] = tuple(values["assumptions"])
        return cls(**values)


def make_plan(config: Config, topology: Topology, batch_per_device: int | None = None) -> Plan:
    """Compiles the step of this configuration for this topology.

    Args:
        batch_per_device: images, instead of config.batch_size over all devices.

    Raises:
        ValueError: the configuration does not train, or cannot run on so many devices, or what
            it trains cannot be told.
        Stopped: a signal came before.
    """
    stop_requests.check()
    check_trains(config.task)
    mesh = sharding.make_mesh(config.mesh, devices=topology.devices())
    step = STEPS[config.task](config, mesh)
    config, batch_per_device, changed = fit_batch(step.config, mesh, batch_per_device)
    assumptions = [*step.assumptions, *([changed] if changed else [])]
    assumptions.append(f"at most {CLASSES_PER_IMAGE} classes in an image")
    logger.info("compiling for %s, %d images per device", topology.name, batch_per_device)
    costs = compile_step(step.lower(config), mesh, topology.chip)
    return Plan(
        topology=topology.name,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        batch_per_device=batch_per_device,
        accumulation_steps=config.optimizer.accumulation_steps,
        remat=config.model.remat,
        num_steps=config.num_steps,
        model=step.model,
        image_size=step.image_size,
        image_flops=step.image_flops,
        costs=costs,
        assumptions=tuple(assumptions),
    )


def fit_batch(config: Config, mesh: Mesh, per_device: int | None) -> tuple[Config, int, str]:
    """A batch that divides over the mesh, images per device that splits it, and what was changed.

    Raises:
        ValueError: accumulation_steps does not divide `per_device`.
    """
    devices = num_batch_shards(mesh)
    parts = config.optimizer.accumulation_steps
    if per_device is not None and per_device % parts:
        raise ValueError(
            f"--batch_per_device={per_device}: expected a multiple of "
            f"config.optimizer.accumulation_steps={parts}"
        )
    changed = ""
    if per_device is None:
        smallest = devices * parts
        per_device = parts * math.ceil(config.batch_size / smallest)
        if config.batch_size % smallest:
            changed = (
                f"batch {per_device * devices} instead of config.batch_size={config.batch_size}, "
                f"which does not divide over {devices} devices x {parts} accumulation steps; "
                "--batch_per_device sets another"
            )
    return dataclasses.replace(config, batch_size=per_device * devices), per_device, changed


def alternatives(config: Config, topology: Topology, failed: Plan) -> Iterator[tuple[str, Plan]]:
    """What would fit instead of a plan that does not, each compiled: (settings, plan)."""
    images = failed.batch_per_device
    changes: dict[str, Config] = {}
    for name, value in (("scan_blocks", False), ("remat", True)):
        if config.task == "train" and getattr(config.model, name) != value:
            model = dataclasses.replace(config.model, **{name: value})
            changes[f"--config.model.{name}={value}"] = dataclasses.replace(config, model=model)
    parts = config.optimizer.accumulation_steps
    if finer := next((n for n in range(2 * parts, images + 1) if images % n == 0), None):
        optimizer = dataclasses.replace(config.optimizer, accumulation_steps=finer)
        name = f"--config.optimizer.accumulation_steps={finer}"
        changes[name] = dataclasses.replace(config, optimizer=optimizer)
    devices = topology.num_devices // topology.num_slices // config.mesh.model
    fsdp = math.gcd(LARGEST_FSDP, devices)
    if config.mesh.fsdp == 1 and config.mesh.data == -1 and fsdp > 1:
        mesh = dataclasses.replace(config.mesh, fsdp=fsdp)
        changes[f"--config.mesh.fsdp={fsdp}"] = dataclasses.replace(config, mesh=mesh)
    for name, changed in changes.items():
        plan = make_plan(changed, topology, images)
        if plan.costs.fits:
            yield name, plan
    smaller = _smaller_batch(config, topology, failed)
    if smaller is not None:
        yield f"--batch_per_device={smaller.batch_per_device}", smaller


def _smaller_batch(config: Config, topology: Topology, failed: Plan) -> Plan | None:
    """With the first batch that fits of what is expected to, half of it and so on."""
    parts = failed.accumulation_steps
    expected = _expected(failed) if "temporaries" in failed.costs.hbm else failed.batch_per_device
    guess = min(expected, failed.batch_per_device - 1) // parts
    while guess:
        plan = make_plan(config, topology, guess * parts)
        if plan.costs.fits:
            return plan
        guess //= 2
    return None


def largest_batch(plan_of: Callable[[int], Plan], step: int, *, start: int) -> Plan | None:
    """The plan with the most images per device that fits, or None if not even `step` does.

    From `start` on, in multiples of `step`, it goes where the memory of the largest plan that fits
    tells to look, at most four times further at once, and halves where that tells nothing. It ends
    with less than a 32nd left to find.
    """
    best, low, high = None, 0, None
    guess = max(1, start // step)
    while high is None or high - low > max(1, low // 32):
        plan = plan_of(guess * step)
        if plan.costs.fits:
            best, low = plan, guess
            guess = min(max(_expected(plan) // step, low + 1), 4 * low)
        else:
            high = guess
            guess = (low + high) // 2
        if high is not None:
            guess = min(guess, high - 1)
    return best


def _expected(plan: Plan) -> int:
    """Images that fit if all that grows with the batch grows like it."""
    growing = plan.costs.hbm["temporaries"] + plan.costs.hbm["batch"]
    fixed = plan.costs.hbm_needed - growing
    return int((plan.machine.chip.hbm_bytes - fixed) * plan.batch_per_device / growing)
