"""How often a data set shows each of its classes, as bars."""

import io

from input_pipeline.records.label_counts import LabelCounts

_INCHES_PER_CLASS = 0.2


def draw_label_counts(counts: LabelCounts) -> bytes:
    """PNG of bars for each class: images, and pixels where they were counted.

    The axes are logarithmic, so that a rare class is not taken for an absent one, which has no bar
    and a red name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    columns = [("images", counts.images), ("pixels", counts.pixels)]
    columns = [(title, values) for title, values in columns if values is not None]
    height = 1.5 + _INCHES_PER_CLASS * len(counts.class_names)
    figure = Figure(figsize=(3 + 4 * len(columns), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    positions = range(len(counts.class_names))
    for panel, (title, values) in zip(axes, columns, strict=True):
        panel.barh(positions, values)
        panel.set_xscale("symlog")
        panel.set(title=title)
        panel.grid(axis="x", alpha=0.3)
    # A dollar would begin a formula.
    names = [name.replace("$", r"\$") for name in counts.class_names]
    axes[0].set_yticks(positions, names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for label, images in zip(axes[0].get_yticklabels(), counts.images, strict=True):
        label.set_color("black" if images else "red")
    if counts.absent:
        number = f"{len(counts.absent)} of {len(names)}"
        figure.suptitle(f"no pixel shows {number} classes", color="red")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()
