"""Numbers of the MAFT paper and repository beside those that evaluations found here."""

import os
import pathlib
from dataclasses import dataclass

from input_pipeline.dataset_specs import SPECS
from maft_jax.evaluators.results import read_result
from maft_jax.runtime.markdown import table


@dataclass(frozen=True)
class Published:
    """One number, in percent."""

    model: str
    run: str
    """Folder of the evaluation in docs/reproduce.md."""
    dataset: str
    metric: str
    value: float


_SETS = ("ade20k_full", "pascal_context_459", "ade20k_150", "pascal_context_59", "voc2012")
_OPEN = {
    ("MAFT ViT-B/16", "maft_b"): (10.25, 12.85, 29.14, 53.33, 90.44),
    ("MAFT ViT-L/14", "maft_l"): (12.12, 15.68, 32.05, 58.01, 92.14),
}
_UNSEEN = {"coco_stuff": 50.4, "voc2012": 81.8, "ade20k_full": 8.7}

PUBLISHED = (
    *(
        Published(model, run, dataset, "miou_gt_or_pred", value)
        for (model, run), values in _OPEN.items()
        for dataset, value in zip(_SETS, values, strict=True)
    ),
    *(
        Published("MAFT, zero-shot", f"zero_shot_{dataset}", dataset, "unseen_miou", value)
        for dataset, value in _UNSEEN.items()
    ),
)


def reproduction_table(runs: str | os.PathLike) -> str:
    """Markdown: a line for each of PUBLISHED, with what RUN/evaluation below `runs` has of it.

    Raises:
        ValueError: a result is corrupt.
    """
    headings = ("model", "data set", "metric", "published", "measured here", "evaluation")
    lines = [
        (
            one.model,
            SPECS[one.dataset].short_title,
            f"`{one.metric}`",
            f"{one.value:g}",
            _measured(pathlib.Path(runs) / one.run, one),
            f"`{one.run}`",
        )
        for one in PUBLISHED
    ]
    return table(headings, lines)


def _measured(run: pathlib.Path, one: Published) -> str:
    path = run / "evaluation" / f"{one.dataset}.json"
    if not path.exists():
        return "none"
    result = read_result(path)
    value = f"{100 * result.numbers()[one.metric]:.2f}"
    if result.num_images in SPECS[one.dataset].num_images["val"]:
        return value
    return f"{value} of {result.num_images} images alone"
