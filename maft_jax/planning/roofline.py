"""The roofline of chips, and where compiled steps lie below it, as a picture."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maft_jax.planning.chips import Chip
from maft_jax.planning.plan import Plan

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
"""Told apart by everybody (Okabe and Ito)."""
_MARKERS = "osD^vP*X"
_INTENSITIES = (1.0, 1e4)
"""FLOPs per byte of memory traffic that the picture shows."""


def draw_roofline(plans: Sequence[Plan], labels: Sequence[str]) -> bytes:
    """PNG: attainable FLOP/s of a device against FLOPs per HBM byte, a point for every plan.

    A point is on its chip's roof, at what the formula counts over what the compiler says is moved.

    Raises:
        ValueError: no plan fits.
    """
    fitting = [(plan, label) for plan, label in zip(plans, labels, strict=True) if plan.costs.fits]
    if not fitting:
        raise ValueError("--roofline: no plan fits, so there is nothing to draw")
    chips: dict[str, Chip] = {plan.machine.chip.name: plan.machine.chip for plan, _ in fitting}
    colors = dict(zip(chips, _COLORS, strict=False))
    figure = Figure(figsize=(8.2, 5.0), layout="constrained")
    axes = figure.subplots()
    intensities = np.geomspace(*_INTENSITIES, 200)
    for name, chip in chips.items():
        roof = np.minimum(chip.device_flops, intensities * chip.device_hbm_bandwidth)
        axes.plot(intensities, roof / 1e12, color=colors[name], label=chip.title)
    for index, (plan, label) in enumerate(fitting):
        intensity = plan.bounds.model_flops / plan.costs.hbm_bytes
        attainable = plan.bounds.mfu * plan.bounds.peak_flops / 1e12
        axes.plot(
            intensity,
            attainable,
            color=colors[plan.machine.chip.name],
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="none",
            label=label,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=_INTENSITIES,
        xlabel="model FLOPs per byte of HBM traffic",
        ylabel="model TFLOP/s of a device, at most",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
