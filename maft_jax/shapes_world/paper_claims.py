"""What the paper found, and the comparisons of runs that say whether it holds in shapes world."""

from collections.abc import Callable, Sequence

from maft_jax.shapes_world.study_results import Estimate, Results, Row, best_step

PAPER = {
    "main": "Tuning raises unseen mIoU: COCO 42.2 to 50.4, VOC 78.6 to 81.8, ADE-Full 4.4 to 8.7.",
    "losses": "The mask-aware loss brings the gain; self-distillation keeps what CLIP can transfer "
    "to unseen classes.",
    "distillation_weight": "The weight is 1; in the released code it is 0.1.",
    "mask_start_layer": "Masks from a middle layer on (8 of 12) are best.",
    "trainable": "Training attention and LayerNorms alone is best; training everything is worse.",
    "loss_kind": "SmoothL1 is best, and the others are close.",
    "steps": "Too many steps harm unseen classes.",
}
"""What arXiv 2310.00240 found, for the tables that repeat an experiment of it."""

HERE = {
    "losses": "Here distillation is hardly visible: after so few steps there is little to keep. "
    "Alone it has nothing to do, since the student begins as the teacher.",
    "distillation_weight": "Here more weight holds the tower nearer to the frozen CLIP in seen and "
    "unseen classes alike. What tuning changes helps both, so that there is nothing to protect.",
    "mask_start_layer": "Here the earlier the better, and without masks nothing is left. It is a "
    "fact of this CLIP rather than of tuning, since the frozen one shows it as well: an object's "
    "own patches name it, and all around it is random, so that whatever a proposal reads outside "
    "its mask is about something else. Photos have context, and the first layers of a large CLIP "
    "are not made for reading a few patches alone; so this says nothing about layer 8 of 12.",
}
"""Why it is as it is in shapes world, where that differs from the paper; no numbers."""

Comparison = tuple[str, Estimate, str, Estimate]
"""What should be higher, and than what."""


def _tuned_above_frozen(results: Results, metric: str) -> list[Comparison]:
    return [
        (f"{name} tuned", row.tuned(metric), f"{name} frozen", row.frozen(metric))
        for row in results.measured("main")
        for name in [row.experiment.row]
    ]


def _mask_aware_above_distillation(results: Results, metric: str) -> list[Comparison]:
    return [
        (one.label, one.tuned(metric), other.label, other.tuned(metric))
        for one in _changing(results, "losses", "loss.distillation_weight")
        for other in _changing(results, "losses", "loss.mask_aware_weight")
    ]


def _both_above_mask_aware(results: Results, metric: str) -> list[Comparison]:
    rows = _changing(results, "losses", "loss.distillation_weight")
    return _recipe_above(results, metric, rows)


def _recipe_best_of(table: str) -> Callable[[Results, str], list[Comparison]]:
    return lambda results, metric: _recipe_above(results, metric, results.measured(table))


def _recipe_above_everything(results: Results, metric: str) -> list[Comparison]:
    trained = _changing(results, "trainable", "optimizer.trainable")
    rows = [row for row in trained if ".*" in row.experiment.changes["optimizer.trainable"]]
    return _recipe_above(results, metric, rows)


def _best_step_above_last(results: Results, metric: str) -> list[Comparison]:
    points = results.step_points("steps", metric) if "steps" in results.tables else {}
    earlier = {step: found for step, found in points.items() if 0 < step < max(points)}
    if not earlier:
        return []
    best, last = best_step(earlier), max(points)
    return [(f"step {best}", points[best], f"step {last}", points[last])]


CLAIMS = (
    ("Tuning raises unseen mIoU.", "unseen", _tuned_above_frozen),
    ("The mask-aware loss brings the gain.", "unseen", _mask_aware_above_distillation),
    ("Self-distillation keeps transferability.", "unseen", _both_above_mask_aware),
    ("Masks from a middle layer on are best.", "hIoU", _recipe_best_of("mask_start_layer")),
    ("Training attention and LayerNorms alone is best.", "hIoU", _recipe_best_of("trainable")),
    ("Training everything is worse.", "unseen", _recipe_above_everything),
    ("SmoothL1 is the best mask-aware loss.", "hIoU", _recipe_best_of("loss_kind")),
    ("Too many steps harm unseen classes.", "unseen", _best_step_above_last),
)
"""Claim, metric that decides it, and what it compares."""


def _changing(results: Results, table: str, setting: str) -> list[Row]:
    return [row for row in results.measured(table) if setting in row.experiment.changes]


def _recipe_above(results: Results, metric: str, rows: Sequence[Row]) -> list[Comparison]:
    recipe = results.recipe()
    if recipe is None:
        return []
    return [
        ("recipe", recipe.tuned(metric), row.label, row.tuned(metric))
        for row in rows
        if not row.is_recipe
    ]


def verdict(comparisons: Sequence[Comparison]) -> str:
    """yes, no, within the spread, one seed; - where there is nothing to compare."""
    outcomes = {high.is_above(low) for _, high, _, low in comparisons}
    for decisive in ("no", "one seed", "within the spread", "yes"):
        if decisive in outcomes:
            return decisive
    return "-"
