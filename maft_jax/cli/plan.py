"""Plans training on TPUs and GPUs without them: compiles the train step and says what it costs.

    pip install 'maft_jax[plan]'            # for TPUs
    pip install 'maft_jax[cuda-compile]'    # for NVIDIA's cards
    python -m maft_jax.cli.plan --config=configs/coco.py --topology=v5e:4x4
    python -m maft_jax.cli.plan --config=configs/coco.py --topology=h100:8
    python -m maft_jax.cli.plan --config=configs/coco.py --topology=3090:1 --sweep
    python -m maft_jax.cli.plan --config=configs/coco.py:l14 --topology=2xv5e:16x16 \\
        --batch_per_device=4 --config.model.remat=True
    python -m maft_jax.cli.plan --config=configs/coco.py --topology=v6e:2x2 --sweep
    python -m maft_jax.cli.plan --config=configs/generator_coco.py --topology=v5e:4x4

It prints whether the step fits, memory by part, FLOPs, bytes, collectives, lower bounds of the time
of a step, and hours for config.num_steps. Where the step does not fit it compiles what might:
remat, accumulation, fsdp, a smaller batch. Weights and data need not be there; what is assumed
instead is printed. docs/scaling.md explains the numbers and has them for every configuration.

Topologies are CHIP:AxB or CHIP:AxBxC with v4, v5e, v5p, v6e or tpu7x (Ironwood), and several slices
Nx in front; or CARD:NUMBER, and several hosts Nx in front (2xh100:8), with a CARD of h100,
h100-pcie, h100-nvl, h200, b200, a100-80, a100-40, a6000, 3090, 4090, l4, v100-16, v100-32,
v100-pcie or t4. The compiler for cards refuses nothing: what a step needs is compared with what jax
takes of a card, 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says other. A compilation takes a minute
or so for ViT-B/16 on two cores; Ctrl-C waits ten seconds for its end.

Exit codes: 0 the step fits, 1 it does not or something failed, 2 wrong input, 130 and 143
interrupted.

Every setting can be given as --config.NAME=VALUE:
"""

import json
import pathlib

from absl import flags

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.planning.topology import parse_topology, prepare_environment
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.runtime.console import failed, log_to_stderr, run_and_report

__doc__ += describe_fields(Config, "--config.")

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "[SLICESx]CHIP:SHAPE, such as v5e:4x4; or [HOSTSx]CARD:NUMBER, such as h100:8"
)
_BATCH_PER_DEVICE = flags.DEFINE_integer(
    "batch_per_device",
    None,
    "images, instead of config.batch_size over all devices; with --sweep where it begins",
    lower_bound=1,
)
_SWEEP = flags.DEFINE_boolean("sweep", False, "find the largest batch per device that fits")
_ALTERNATIVES = flags.DEFINE_boolean(
    "alternatives", True, "compile what might fit where the step does not"
)
_JSON = command_line.define_path("json", None, "file for the plans as JSON")
_ROOFLINE = command_line.define_path("roofline", None, "file for a picture of the roofline, PNG")


def main(config: Config) -> int:
    """Prints the plan and returns the exit code."""
    log_to_stderr()
    codes = []
    return run_and_report(lambda: codes.append(_plan(config))) or codes[0]


def _plan(config: Config) -> int:
    from maft_jax.planning.plan import Plan, alternatives, largest_batch, make_plan
    from maft_jax.planning.report import describe, describe_alternatives, describe_sweep

    topology = parse_topology(_TOPOLOGY.value)
    plans: list[Plan] = []

    def compiled(batch_per_device: int | None) -> Plan:
        plans.append(make_plan(config, topology, batch_per_device))
        _write_json(plans)
        return plans[-1]

    if _SWEEP.value:
        step = config.optimizer.accumulation_steps
        try:
            chosen = largest_batch(compiled, step, start=_BATCH_PER_DEVICE.value or step)
        finally:
            print(describe_sweep(plans), flush=True)
        if chosen is None:
            return failed(f"not even {step} images per device fit", 1)
        print(f"\nlargest: {chosen.batch_per_device} images per device\n")
    else:
        chosen = compiled(_BATCH_PER_DEVICE.value)
    print(describe(chosen), flush=True)
    if not chosen.costs.fits and _ALTERNATIVES.value:
        found = []
        for name, plan in alternatives(config, topology, chosen):
            found.append((name, plan))
            plans.append(plan)
            _write_json(plans)
        print(f"\n{describe_alternatives(found)}")
    _draw(plans)
    return 0 if chosen.costs.fits else 1


def _write_json(plans: list) -> None:
    if _JSON.value:
        with atomic_write(_JSON.value) as aside:
            aside.write_text(json.dumps([plan.to_json() for plan in plans], indent=1) + "\n")


def _draw(plans: list) -> None:
    if not _ROOFLINE.value or not any(plan.costs.fits for plan in plans):
        return
    from maft_jax.planning.roofline import draw_roofline

    labels = [f"{plan.topology}, {plan.batch_per_device} images per device" for plan in plans]
    with atomic_write(_ROOFLINE.value) as aside:
        aside.write_bytes(draw_roofline(plans, labels))


def _prepare(config) -> None:
    """Data need not be there; a configuration that only evaluates is told so first."""
    parse_topology(_TOPOLOGY.value)
    for flag in (_JSON, _ROOFLINE):
        if flag.value and not pathlib.Path(flag.value).absolute().parent.is_dir():
            raise ValueError(f"--{flag.name}={flag.value}: there is no such folder")
    if config.task == "evaluate":
        from maft_jax.planning.architecture import check_trains

        check_trains(config.task)
    if not config.data.root and not config.data.records:
        config.data.root = "not-given"


def run() -> None:
    """Parses the command line and exits with main's code."""
    prepare_environment()
    flags.register_validator("topology", bool, "expected the machine: --topology=v5e:4x4 or h100:8")
    config_flags.run(main, prepare=_prepare)


if __name__ == "__main__":
    run()
