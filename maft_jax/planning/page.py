"""docs/scaling.md, made of the plans that `scaling_study.run_study` compiled."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maft_jax.planning.bounds import scaling_efficiency
from maft_jax.planning.chips import GIB, Chip
from maft_jax.planning.collectives import BETWEEN_SLICES, KINDS
from maft_jax.planning.gpu_card import DEFAULT_SHARE, LARGE_SHARE
from maft_jax.planning.page_peaks import peaks
from maft_jax.planning.plan import Plan
from maft_jax.planning.roofline import draw_roofline
from maft_jax.planning.scaling_study import EIGHT_CHIPS, EXPERIMENTS, LARGE, Experiment
from maft_jax.planning.topology import parse_topology
from maft_jax.runtime import markdown
from maft_jax.runtime.atomic_files import atomic_write

PAGE_FILE = "scaling.md"
PLANS_FILE = "scaling/plans.json"
ROOFLINE_FILE = "scaling_roofline.png"

LARGEST_MACHINE = 512
"""Chips up to which the page predicts scaling."""
ENOUGH = 0.95
"""Efficiency that scaling is judged by."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """An experiment with its plans by topology, in the experiment's order."""

    experiment: Experiment
    plans: Mapping[str, Plan]

    @property
    def missing(self) -> list[str]:
        return [name for name in self.experiment.topologies if name not in self.plans]

    @property
    def fitting(self) -> list[Plan]:
        return [plan for plan in self.plans.values() if plan.costs.fits]


def read_study(
    study: Mapping[str, Any], experiments: Sequence[Experiment] = EXPERIMENTS
) -> list[Planned]:
    """The plans of plans.json.

    Raises:
        ValueError: it has plans that no experiment asks for.
    """
    wanted = {(one.key, topology) for one in experiments for topology in one.topologies}
    found = {(name, topology) for name, plans in study["plans"].items() for topology in plans}
    if stale := sorted(found - wanted):
        raise ValueError(f"{PLANS_FILE}: plans that no experiment asks for: {stale}; make it anew")
    return [
        Planned(
            one,
            {
                topology: Plan.from_json(study["plans"][one.key][topology])
                for topology in one.topologies
                if topology in study["plans"].get(one.key, {})
            },
        )
        for one in experiments
    ]


def write_page(study: Mapping[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Writes the page, its figure and the plans that they are made of; returns the page's path."""
    planned = read_study(study)
    (folder / PLANS_FILE).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / PLANS_FILE) as aside:
        aside.write_text(json.dumps(study, indent=1) + "\n")
    drawn = [
        (plan, f"{one.experiment.name}, {plan.topology}")
        for one in planned
        for plan in one.fitting
        if plan.topology in (EIGHT_CHIPS if one.experiment is EXPERIMENTS[0] else LARGE[:1])
    ]
    if drawn:
        with atomic_write(folder / ROOFLINE_FILE) as aside:
            aside.write_bytes(draw_roofline(*zip(*drawn, strict=True)))
    with atomic_write(folder / PAGE_FILE) as aside:
        aside.write_text(render_page(study), encoding="utf-8")
    return folder / PAGE_FILE


def render_page(study: Mapping[str, Any], experiments: Sequence[Experiment] = EXPERIMENTS) -> str:
    """The page as Markdown."""
    planned = read_study(study, experiments)
    parts = [*_introduction(study), *_reading(), *peaks()]
    for one in planned:
        parts += _experiment(one)
    parts += [
        "## configs/eval_only.py",
        "Evaluates weights and has no train step; there is nothing to plan.",
    ]
    parts += [*_collectives(planned), *_scaling(planned), *_roofline(planned)]
    return "\n\n".join(parts) + "\n"


def _introduction(study: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in study["versions"].items() if value)
    plans = [plan for by_batch in study["plans"].values() for plan in by_batch.values()]
    seconds = [plan["costs"]["compile_seconds"] for plan in plans]
    return [
        "# Scaling: what training costs on TPUs and GPUs, before renting one",
        "    python -m maft_jax.cli.plan --config=configs/coco.py --topology=v5e:4x4\n"
        "    python -m maft_jax.cli.plan --config=configs/coco.py --topology=h100:8",
        markdown.paragraph(
            "compiles the train step for machines that need not be there, with the TPU compiler "
            "(`pip install 'maft_jax[plan]'`) or the one for NVIDIA's cards (`pip install "
            "'maft_jax[cuda-compile]'`), and prints what this page has for every configuration of "
            "MAFT: whether it fits, memory by part, arithmetic, traffic, and lower bounds of time. "
            "It is the step that training runs: the same function, shardings and donation, of "
            "`maft_jax.training.step_setup.make_step_setup`. Several slices are written "
            "2xv5e:16x16, several hosts with cards 2xh100:8; "
            "`--sweep` finds the largest batch per device, `--json` and `--roofline` write files, "
            "and where a step does not fit, what would is compiled, too. Training of a generator "
            "is planned by the same command; [its page](generator_training.md#what-it-takes) says "
            "what it takes."
        ),
        "    python -m maft_jax.cli.scaling_page --workdir=runs/scaling --page=docs",
        markdown.paragraph(
            f"made this page: {len(plans)} compilations, {sum(seconds) / 60:.0f} minutes in total "
            f"on {study['machine']}, the longest {max(seconds, default=0):.0f} s. An interrupted "
            f"command goes on where it was. The page is made of [plans.json]({PLANS_FILE}); no "
            f"number is typed by hand. Versions: {versions}."
        ),
        markdown.paragraph(
            "For this page the TPU compiler does not search for the fastest loops "
            "(JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1), as it does in training and in "
            "`maft_jax.cli.plan`: that takes a fifth of the time and changes neither FLOPs nor "
            "collectives, and memory by a few percent; the search adds copies between HBM and "
            "on-chip memory, which the count of traffic then includes "
            "([performance.md](performance.md) has both)."
        ),
    ]


def _reading() -> list[str]:
    return [
        "## What is proven, and what is not",
        markdown.paragraph(
            "Proven: the step compiles for these machines, fits into their memory by the "
            "compiler's own account, and moves these bytes in these collectives. Not proven: "
            "speed. Nothing here was run on a TPU or a GPU. Times are bounds from published peaks, "
            "which no program reaches; latencies of collectives, the input pipeline and the host "
            "are left out."
        ),
        "## How to read the tables",
        markdown.bullets(
            "**HBM** is what the compiler allocates on a device: arguments, outputs that take no "
            "argument's place, temporaries and the program itself, of what programs can use.",
            "**TFLOP** and **HBM GB** are the compiler's counts for a device and step, loops with "
            "all their iterations. Buffers that stay in on-chip memory are counted as traffic, "
            "too, so that *memory* is an estimate from above where many do. Pallas kernels count "
            "what they say of themselves.",
            "**compute** is the larger of that count and the formula of "
            "`maft_jax/models/flops.py`, at the peak in bfloat16. **memory** is the HBM bytes at "
            "the peak bandwidth.",
            "**links**: a ring passes 2 (n - 1) / n of what is reduced through each of n chips, "
            "half of it for gathers and scatters, over the links of the axes that the n chips "
            "span: two directions of an axis that is closed to a ring (16 chips on v5e and v6e; "
            "slices of whole 4 x 4 x 4 cubes on the others), one of an open axis. The two devices "
            "of an Ironwood chip share its links.",
            "**slices**: the same between slices, at the network's rate per chip, for what each "
            "chip holds after its slice has reduced.",
            "**step** is all of these at the same time: a lower bound, as far as the count of "
            "traffic is right. **images/s** and **MFU** (FLOPs by formula over the peak) are "
            "therefore upper bounds, **hours** and **chip-hours** for the configuration's number "
            "of steps lower ones.",
        ),
        "On NVIDIA's cards:",
        markdown.bullets(
            "**memory** is compared with what jax takes of a card, "
            f"{DEFAULT_SHARE:.0%}; the compiler itself refuses nothing. "
            f"`XLA_PYTHON_CLIENT_MEM_FRACTION={LARGE_SHARE}` gives more where nothing else uses "
            "the card, and `cli.plan` says whether that is enough. cuDNN's workspace and the code "
            "of kernels are not known and count as nothing, and the memory of CUDA's context and "
            "of libraries lies outside of jax's share: trust a plan that leaves a tenth free.",
            "**TFLOP** is the formula's: cuBLAS and cuDNN do not say what they do. **memory GB** "
            "are the operands and results of all that runs, as the program's text has them; what "
            "a cache keeps from one kernel to the next is counted as traffic, too.",
            "Products are cuBLAS's, since tiles for XLA's own cannot be timed without a card "
            "(**no autotuning**); on a card XLA may choose others, with a little more or less "
            "memory.",
            "**links** within a host, **hosts** between them, by the rates below; all cards of a "
            "host send at once.",
            "V100 and T4 cannot multiply bfloat16: XLA multiplies in float32 there, for which "
            "their peak is an eighth, and attention is XLA's. Their bounds are made of that peak.",
        ),
    ]


def _experiment(planned: Planned) -> list[str]:
    one = planned.experiment
    command = " ".join(f"--config.{name}={value}" for name, value in one.settings.items())
    batch = f"--batch_per_device={one.batch_per_device} " if one.batch_per_device else ""
    heading = f"{_config_file(one)}: {one.title}"
    parts = [
        f"## {f'NVIDIA cards, {heading}' if one.variant else heading}",
        f"    python -m maft_jax.cli.plan --config={_config_file(one)} {command}".rstrip()
        + f" \\\n        {batch}--topology=...",
    ]
    if planned.missing:
        parts.append(
            markdown.paragraph(f"**Incomplete.** Not compiled yet: {_list(planned.missing)}.")
        )
    if not planned.plans:
        return parts
    assumed = dict.fromkeys(text for plan in planned.plans.values() for text in plan.assumptions)
    images = f"{one.batch_per_device} images per device. " if one.batch_per_device else ""
    parts.append(markdown.paragraph(f"{images}Assumed: {'; '.join(assumed)}."))
    parts += [_costs_table(planned), _bounds_table(planned)]
    if planned.fitting:
        plan = planned.fitting[0]
        name = plan.machine.chip.memory_name
        parts += [f"{name[0].upper()}{name[1:]} of a device by part, in MiB, on {plan.topology}:"]
        parts.append(_parts_table(plan))
    return parts


def _words(planned: Planned) -> Chip:
    """A chip of the kind that the experiment is planned for, which has the words for it."""
    return parse_topology(planned.experiment.topologies[0]).chip


def _config_file(one: Experiment) -> str:
    name, colon, variant = one.name.partition(":")
    return f"configs/{name}.py{colon}{variant}"


def _costs_table(planned: Planned) -> str:
    lines = []
    for plan in planned.plans.values():
        machine, costs = plan.machine, plan.costs
        verdict = f"{costs.hbm_needed / GIB:.2f} of {machine.chip.hbm_bytes / GIB:.2f}"
        if costs.error:
            verdict, numbers = "**does not fit**", ["", "", "", ""]
        else:
            share = f"{costs.hbm_needed / machine.chip.hbm_bytes:.0%}"
            sent = sum(traffic.payload_bytes for traffic in costs.traffic)
            flops = plan.formula_flops if costs.flops is None else costs.flops
            numbers = [
                share if costs.fits else f"**{share}**",
                f"{flops / 1e12:.3g}",
                f"{costs.hbm_bytes / 1e9:.3g}",
                f"{sent / 1e6:.1f}",
            ]
        lines.append(
            [plan.topology, str(machine.num_chips), str(plan.batch_size), verdict, *numbers]
        )
    words = _words(planned)
    headings = ["topology", f"{words.noun}s", "batch", f"{words.memory_name}, GiB", "", "TFLOP"]
    return markdown.table([*headings, f"{words.memory_name} GB", "collectives, MB"], lines)


def _bounds_table(planned: Planned) -> str:
    lines = []
    for plan in planned.fitting:
        bounds = plan.bounds
        times = (bounds.compute, bounds.memory, bounds.links, bounds.dcn, bounds.overlapped)
        lines.append(
            [
                plan.topology,
                *(f"{1e3 * seconds:.3g}" for seconds in times),
                f"{plan.images_per_second:,.0f}",
                f"{bounds.mfu:.0%}",
                f"{plan.hours:.2g}",
                f"{plan.hours * plan.machine.num_chips:.2g}",
            ]
        )
    steps = {plan.num_steps for plan in planned.plans.values()}
    words = _words(planned)
    headings = [
        "topology",
        "compute, ms",
        "memory, ms",
        "links, ms",
        f"{words.part}s, ms",
        "step, ms",
        "images/s",
        "MFU",
        f"hours of {_list(map(str, steps))} steps",
        f"{words.noun}-hours",
    ]
    return markdown.table(headings, lines)


def _parts_table(plan: Plan) -> str:
    return markdown.table(
        ["part", "MiB"],
        [
            [name, f"{size / 2**20:.1f}"]
            for name, size in sorted(plan.costs.hbm.items(), key=lambda part: -part[1])
        ],
    )


def _collectives(planned: Iterable[Planned]) -> list[str]:
    kinds = (*KINDS, BETWEEN_SLICES)
    lines = []
    for one in planned:
        for plan in one.fitting:
            if plan.machine.num_devices == 1:
                continue
            sent = dict.fromkeys(kinds, 0.0)
            reduced = 0.0
            for traffic in plan.costs.traffic:
                sent[traffic.kind] += traffic.payload_bytes
                if traffic.kind in ("all-reduce", "reduce-scatter"):
                    reduced += traffic.elements
            parameters = plan.costs.trainable_parameters
            lines.append(
                [one.experiment.key, plan.topology, f"{parameters:,}"]
                + [f"{reduced / parameters:.3f}", f"{4 * parameters / 1e6:.2f}"]
                + [f"{sent[kind] / 1e6:.2f}" if sent[kind] else "" for kind in kinds]
            )
    headings = ["config", "topology", "trainable", "reduced / trainable", "gradients, MB"]
    return [
        "## Bytes of collectives",
        markdown.paragraph(
            "Of a step, in MB: what is reduced or gathered, once; gradients are those of the "
            "trainable parameters in float32. *reduced / trainable* is how many numbers are "
            "reduced for each trainable parameter, whatever their type: 1 and a few scalars if "
            "every gradient is reduced once. All meshes here split the batch alone (`data`), so "
            "that frozen weights are never gathered. Between slices the compiler makes an "
            "all-reduce of a reduction in each slice, sends of the parts that the chips hold, and "
            "gathers of the sums."
        ),
        markdown.table([*headings, *kinds], lines),
    ]


def _scaling(planned: Iterable[Planned]) -> list[str]:
    lines, efficiencies = [], []
    for one in planned:
        smallest: dict[str, Plan] = {}
        for plan in sorted(one.fitting, key=lambda plan: plan.machine.num_chips):
            machine = plan.machine
            first = smallest.setdefault(machine.chip.name, plan)
            if first is plan or first.machine.num_chips != 8:
                continue
            efficiency = scaling_efficiency(first.bounds, plan.bounds)
            efficiencies.append(efficiency)
            communication = plan.bounds.links + plan.bounds.dcn
            lines.append(
                [
                    one.experiment.key,
                    first.topology,
                    plan.topology,
                    f"{first.machine.num_chips} → {machine.num_chips}",
                    f"{1e3 * communication:.3g}",
                    f"{1e3 * plan.bounds.not_overlapped:.3g}",
                    f"{efficiency:.1%}",
                ]
            )
    if not lines:
        return ["## From 8 to 512 chips", "**Incomplete.** Nothing to compare yet."]
    verdict = "at least" if min(efficiencies) >= ENOUGH else "not everywhere"
    headings = ["config", "from", "to", "chips", "collectives, ms", "step, ms", "efficiency"]
    return [
        f"## From 8 to {LARGEST_MACHINE} chips",
        markdown.paragraph(
            "Images per second and chip at the same batch per chip, of those on 8 chips, "
            "predicted from the bounds above with collectives that overlap with nothing: the "
            "worst case of the interconnect. Assumed: the input pipeline keeps up, all chips are "
            "equally fast, collectives have no latency, and the rest of a step takes its bound. A "
            "step that is slower than its bound scales better than this. The lowest is "
            f"{min(efficiencies):.1%}, {verdict} {ENOUGH:.0%}."
        ),
        markdown.table(headings, lines),
    ]


def _roofline(planned: Sequence[Planned]) -> list[str]:
    if not any(one.fitting for one in planned):
        return []
    return [
        "## Roofline",
        f"![Attainable FLOP/s against FLOPs per byte of HBM traffic]({ROOFLINE_FILE})",
        markdown.paragraph(
            "Points left of the knee are bound by memory traffic. Fewer bytes move them to the "
            "right and up, more arithmetic does not."
        ),
    ]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
