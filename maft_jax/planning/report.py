"""A plan as text."""

from collections.abc import Iterable, Sequence

from maft_jax.planning.chips import GIB
from maft_jax.planning.collectives import BETWEEN_SLICES
from maft_jax.planning.plan import Plan
from maft_jax.planning.traffic import Traffic

_LABEL_WIDTH = 42


def describe(plan: Plan) -> str:
    """Everything that a plan knows, for a terminal."""
    parts = [_headline(plan), "", _fit(plan), *_memory(plan)]
    if plan.costs.fits:
        parts += ["", *_program(plan), "", *_bounds(plan)]
    elif plan.costs.error:
        parts += ["", f"the compiler says: {plan.costs.error}"]
    return "\n".join([*parts, "", "assumed:", *(f"  {text}" for text in _assumptions(plan))])


def describe_alternatives(found: Sequence[tuple[str, Plan]]) -> str:
    """What would fit instead, one line each."""
    if not found:
        return "nothing that was tried fits; take one with more memory or a smaller model"
    lines = [["instead of it fits", *_SWEEP_HEADINGS]]
    lines += [[name, *_sweep_cells(plan)] for name, plan in found]
    return table(lines)


_SWEEP_HEADINGS = ("images/device", "memory GiB", "ms", "images/s", "MFU", "limited by")


def describe_sweep(plans: Iterable[Plan]) -> str:
    """One line per compiled batch, smallest first."""
    ordered = sorted(plans, key=lambda plan: plan.batch_per_device)
    return table([list(_SWEEP_HEADINGS), *(_sweep_cells(plan) for plan in ordered)])


def _sweep_cells(plan: Plan) -> list[str]:
    images = str(plan.batch_per_device)
    if not plan.costs.fits:
        return [images, "does not fit", "", "", "", ""]
    bounds = plan.bounds
    return [
        images,
        f"{plan.costs.hbm_needed / GIB:.2f}",
        f"{1e3 * bounds.overlapped:.2f}",
        f"{plan.images_per_second:.0f}",
        f"{bounds.mfu:.0%}",
        _limit(plan),
    ]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns in line, the first to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _headline(plan: Plan) -> str:
    machine = plan.machine
    mesh = " ".join(f"{name}={size}" for name, size in plan.mesh.items())
    chip = machine.chip
    parts = f" in {machine.num_slices} {chip.part}s" if machine.num_slices > 1 else ""
    chips = f"{machine.num_chips} {chip.noun}{'s' if machine.num_chips > 1 else ''}"
    return (
        f"{plan.model}, {plan.image_size} pixels, on {plan.topology}: {chips}"
        f"{parts}, {machine.num_devices} devices, mesh {mesh}\n"
        f"batch {plan.batch_size}, {plan.batch_per_device} per device, accumulation_steps="
        f"{plan.accumulation_steps}, remat={plan.remat}"
    )


def _fit(plan: Plan) -> str:
    chip, costs = plan.machine.chip, plan.costs
    available = f"of {chip.hbm_bytes / GIB:.2f} GiB of {chip.memory_name} per device"
    if costs.fits:
        share = costs.hbm_needed / chip.hbm_bytes
        verdict = f"fits: {costs.hbm_needed / GIB:.2f} {available} ({share:.0%})"
    elif "temporaries" in costs.hbm:
        verdict = f"does not fit: at least {costs.hbm_needed / GIB:.2f} {available}"
    else:
        verdict = f"does not fit, more {available}"
    return "\n".join([verdict, *chip.notes_on_memory(costs.hbm_needed)])


def _memory(plan: Plan) -> list[str]:
    ordered = sorted(plan.costs.hbm.items(), key=lambda part: -part[1])
    return [_line(name, f"{size / GIB:10.4f} GiB") for name, size in ordered]


def _program(plan: Plan) -> list[str]:
    costs = plan.costs
    memory = plan.machine.chip.memory_name
    lines = ["of a step, per device:"]
    if costs.flops is None:
        lines.append(_line("FLOPs, by the compiler's count", "   unknown: libraries do not say"))
        source = "the program's text"
    else:
        lines.append(_line("FLOPs, by the compiler's count", f"{costs.flops / 1e12:10.4f} T"))
        source = "the compiler's count"
    lines += [
        _line("FLOPs, by formula", f"{plan.formula_flops / 1e12:10.4f} T"),
        _line(f"{memory} bytes, by {source}", f"{costs.hbm_bytes / 1e9:10.4f} GB"),
        _line("train state donated", f"{costs.donated_bytes / 1e6:10.2f} MB"),
        _line(
            f"gradients: {costs.trainable_parameters:,} parameters",
            f"{4 * costs.trainable_parameters / 1e6:10.2f} MB in float32",
        ),
    ]
    if not costs.traffic:
        return [*lines, "  no collectives"]
    return [*lines, *(_line(*_traffic(one)) for one in costs.traffic)]


def _traffic(one: Traffic) -> tuple[str, str]:
    where = "slices" if one.kind == BETWEEN_SLICES else "devices"
    sent = f"{one.payload_bytes / 1e6:10.2f} MB, {one.elements:,.0f} numbers"
    return f"{one.kind}, {one.operations} operations", f"{sent}, over {one.group_size} {where}"


def _bounds(plan: Plan) -> list[str]:
    bounds, machine = plan.bounds, plan.machine

    def milliseconds(name: str, seconds: float) -> str:
        return _line(name, f"{1e3 * seconds:10.3f} ms")

    lines = [
        f"a step takes at least (published peaks of {machine.chip.title}):",
        milliseconds("compute", bounds.compute),
        milliseconds("memory", bounds.memory),
        milliseconds(machine.chip.link_name, bounds.links),
    ]
    if machine.num_slices > 1:
        lines.append(milliseconds(machine.chip.dcn_name, bounds.dcn))
    hours, chips = plan.hours, machine.num_chips
    return [
        *lines,
        milliseconds(f"all overlapped (limit: {_limit(plan)})", bounds.overlapped),
        milliseconds("collectives not overlapped", bounds.not_overlapped),
        _line("images per second, at most", f"{plan.images_per_second:10.0f}"),
        _line("model FLOP utilisation, at most", f"{bounds.mfu:10.1%}"),
        _line(f"{plan.num_steps} steps, at least", f"{hours:10.4f} h"),
        _line("", f"{hours * chips:10.4f} {machine.chip.noun}-hours"),
        _line("", f"{hours * machine.num_devices:10.4f} device-hours"),
    ]


def _assumptions(plan: Plan) -> list[str]:
    chip = plan.machine.chip
    links = f"{chip.link_bandwidth / 1e9:.0f} GB/s over a link in one direction"
    found = [*plan.assumptions, links, *chip.limits]
    if plan.machine.num_slices > 1:
        found.append(
            f"{chip.dcn_bandwidth / 1e9:.2f} GB/s from a {chip.noun} to other {chip.part}s "
            f"({chip.dcn_source})"
        )
    return found


def _limit(plan: Plan) -> str:
    """What bounds a step, in the words of its machine."""
    chip = plan.machine.chip
    words = {"links": chip.link_name, "dcn": chip.dcn_name}
    return words.get(plan.bounds.limit, plan.bounds.limit)


def _line(name: str, value: str) -> str:
    return f"  {name:{_LABEL_WIDTH}}{value}"
