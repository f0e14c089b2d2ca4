"""docs/shapes_world.md, made of what the study measured: no result in it is typed by hand."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from input_pipeline.shapes_world.scenes import SIZE
from input_pipeline.shapes_world.splits import NUM_TRAIN, NUM_VAL
from input_pipeline.shapes_world.vocabulary import (
    BACKGROUNDS,
    COLORS,
    NUM_SPLITS,
    OBJECTS,
    PATTERNS,
    unseen_classes,
)
from maft_jax.configs.generator_shapes_world import get_config as generator_config
from maft_jax.configs.shapes_world import get_config
from maft_jax.runtime import markdown
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.shapes_world import figures
from maft_jax.shapes_world.experiments import EXPERIMENTS, Experiment
from maft_jax.shapes_world.paper_claims import CLAIMS, HERE, PAPER, verdict
from maft_jax.shapes_world.proposal_recall import render_recall
from maft_jax.shapes_world.study_results import (
    METRICS,
    TITLES,
    Estimate,
    Results,
    Row,
    best_step,
    gain,
    row_panels,
    step_panels,
    value,
)

PAGE_FILE = "shapes_world.md"


def render_page(
    study: Mapping, curve: Mapping, experiments: Sequence[Experiment] = EXPERIMENTS
) -> str:
    """The page as Markdown.

    `study` is runs.json with `runs`, `versions`, `machine` and `num_steps` (of the configuration),
    and, as `learned_masks` and `proposal_recall`, the same of those files if they are there;
    `curve` is clip.json, which `train_clip` wrote.

    Raises:
        ValueError: a run is of no experiment, or had other settings than its experiment.
    """
    results = _results(study, experiments)
    parts = [*_introduction(study), *_world(), *_tiny_clip(curve)]
    if "steps_held_out" in results.tables:
        parts += [f"## {TITLES['steps_held_out']}", *_held_out(results)]
    if "main" in results.tables:
        parts += [f"## {TITLES['main']}", *_main(results)]
    if "learned_masks" in results.tables:
        parts += [f"## {TITLES['learned_masks']}", *_learned_masks(results)]
    if "proposal_recall" in study:
        recall = study["proposal_recall"]
        parts += ["### Recall of proposals", *render_recall(recall["runs"])]
        parts.append(markdown.paragraph(_provenance(recall)))
    if results.ablations:
        parts += _ablations(results)
    return "\n\n".join([*parts, *_findings(results)]) + "\n"


def write_page(
    study: Mapping,
    curve: Mapping,
    folder: pathlib.Path,
    experiments: Sequence[Experiment] = EXPERIMENTS,
) -> None:
    """Writes PAGE_FILE and the figures that it shows to `folder`."""
    text = render_page(study, curve, experiments)
    results = _results(study, experiments)
    drawings: dict[str, Callable[[], bytes]] = {
        "clip": lambda: figures.draw_clip_training(curve),
        "splits": lambda: figures.draw_splits(results.measured("main")),
        "steps": lambda: figures.draw_steps(step_panels(results), results.num_steps),
        "ablations": lambda: figures.draw_ablations(row_panels(results)),
    }
    for name, draw in drawings.items():
        if _figure_file(name) in text:
            with atomic_write(folder / _figure_file(name)) as aside:
                aside.write_bytes(draw())
    with atomic_write(folder / PAGE_FILE) as aside:
        aside.write_text(text, encoding="utf-8")


def headline(study: Mapping, experiments: Sequence[Experiment] = EXPERIMENTS) -> str:
    """The main table in one line, for the README."""
    results = Results(study["runs"], experiments, study["num_steps"])
    runs = [run for row in results.measured("main") for run in row.runs]
    means = ", ".join(
        f"{metric} {Estimate.of([value(run, 0, metric) for run in runs])} → "
        f"{Estimate.of([value(run, -1, metric) for run in runs])}"
        for metric in METRICS
    )
    rose = sum(gain(run, "unseen") > 0 for run in runs)
    return f"{means}; unseen rises in {rose} of {len(runs)} runs"


def _results(study: Mapping, experiments: Sequence[Experiment]) -> Results:
    runs = [*study["runs"], *study.get("learned_masks", {"runs": []})["runs"]]
    return Results(runs, experiments, study["num_steps"])


def _introduction(study: Mapping) -> list[str]:
    different = {json.dumps({**run, "table": "", "row": ""}): run for run in study["runs"]}
    minutes = sum(run["seconds"] for run in different.values()) / 60
    return [
        "# Shapes world: does the method work?",
        markdown.paragraph(
            "A world of drawn pictures, small enough for any computer, in which a tiny CLIP is "
            "fine-tuned with MAFT on seen classes and evaluated on seen and unseen ones. This "
            "page has the results over several seeds, and repeats ablations of the paper "
            "([arXiv 2310.00240](https://arxiv.org/abs/2310.00240))."
        ),
        "    python -m maft_jax.cli.train_tiny_clip --workdir=runs/tiny_clip\n"
        "    python -m maft_jax.cli.shapes_world_study --workdir=runs/study",
        markdown.paragraph(
            "The first trains the CLIP that all runs begin with and that the package has. The "
            f"second is the study: {len(different)} runs, {minutes:.0f} minutes in total. "
            "`maft_jax.shapes_world.page` made this page of "
            "[runs.json](shapes_world/runs.json) and "
            "[clip.json](../maft_jax/shapes_world/clip.json), which these commands wrote; no "
            "result is typed by hand."
        ),
        markdown.paragraph(_provenance(study)),
        *_introduction_of_learned_masks(study),
    ]


def _introduction_of_learned_masks(study: Mapping) -> list[str]:
    if "learned_masks" not in study:
        return []
    learned = study["learned_masks"]
    return [
        markdown.paragraph(
            "The runs with learned masks are kept apart "
            "([learned_masks.json](shapes_world/learned_masks.json), with "
            f"`--tables=learned_masks`): {len(learned['runs'])} runs, and the training of "
            f"their generators. {_provenance(learned)}"
        )
    ]


def _provenance(study: Mapping) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in study["versions"].items() if value)
    return f"Machine: {study['machine']}. Versions: {versions}."


def _world() -> list[str]:
    config = get_config()
    kinds = ", ".join(f"`{kind}`" for kind in config.proposals.kinds)
    return [
        "## The world",
        markdown.bullets(
            f"**Pictures** have {SIZE} x {SIZE} pixels, one or two textured backgrounds "
            f"({', '.join(BACKGROUNDS)}), and up to three objects that may overlap. An object's "
            f"class is its pattern ({', '.join(PATTERNS)}) and its colour ({', '.join(COLORS)}), "
            f"{len(OBJECTS)} classes; its outline, size and rotation vary. Every pixel is "
            "labelled.",
            f"**Splits.** Each of {NUM_SPLITS} splits leaves the labels of "
            f"{len(unseen_classes())} of the {len(OBJECTS)} objects out of fine-tuning; no "
            "class is unseen in two of them. Every pattern and every colour of an unseen "
            "class is seen in other combinations. Backgrounds are always seen.",
            f"**Seeds** draw {NUM_TRAIN} pictures for fine-tuning, {NUM_VAL} others for "
            "evaluation, and the order of training. The CLIP is the same.",
            f"**Proposals**: at most {config.proposals.num_proposals} per picture, {kinds} of "
            "`ground_truth` ([proposals.md](proposals.md)).",
            "**Settings** are those of configs/shapes_world.py, but for what a table says. The "
            "recipe is this configuration on the first split.",
            "**Numbers** are mIoU (gt_or_pred, [metrics.md](metrics.md)) in percent, frozen → "
            "tuned, as mean ± sample standard deviation over seeds; hIoU is the harmonic mean of "
            "seen and unseen. The spread of two means is the larger of their standard deviations.",
        ),
    ]


def _tiny_clip(curve: Mapping) -> list[str]:
    settings, last = curve["settings"], curve["quiz"][-1]
    return [
        "## The tiny CLIP",
        markdown.paragraph(
            f"Trained contrastively on {settings['num_pictures']} pictures with captions, "
            f"{len(curve['loss'])} steps of {settings['batch_size']}. Captions name all "
            "classes, as those of CLIP do: unseen classes are without labels, not without "
            "names. The quiz is to name the one object of a picture among all "
            f"{len(OBJECTS)}: at the end the name is right for {last['object']:.0%}, its pattern "
            f"for {last['pattern']:.0%}, its colour for {last['color']:.0%}."
        ),
        _figure("clip", "Loss of the tiny CLIP, and how much it names right"),
    ]


def _held_out(results: Results) -> list[str]:
    metrics = ("seen", "held-out", "hIoU")
    points = {metric: results.step_points("steps_held_out", metric) for metric in metrics}
    harmonic, chosen = points["hIoU"], results.num_steps
    best = best_step(harmonic)
    if chosen == best:
        verdict = f"`config.num_steps` is {chosen}: this table chose it."
    else:
        verdict = f"`config.num_steps` is {chosen}, not the best step of this table, {best}"
        if chosen in harmonic:
            words = harmonic[best].compared(harmonic[chosen], f"that of step {chosen}")
            verdict += f", whose harmonic mean is {words}"
        verdict += "."
    seeds = min(len(row.runs) for row in results.measured("steps_held_out"))
    return [
        markdown.paragraph(
            "Chosen without a look at unseen classes: those of another split are left out of "
            "training, too, and measured on pictures of another world. Each line is a run of its "
            f"own; step 0 is the frozen CLIP. Seeds: {seeds}. The learning rate was chosen in the "
            "same way among 1e-5, 3e-5, 1e-4 and 3e-4, before the rest, with one seed and a CLIP "
            "whose training was not finished; those runs are not among the recorded ones."
        ),
        _steps_table(points, best),
        *_incomplete(results, "steps_held_out"),
        markdown.paragraph(verdict),
        _figure("steps", "mIoU against steps"),
    ]


def _main(results: Results) -> list[str]:
    rows = results.measured("main")
    runs = [(row, run) for row in rows for run in row.runs]
    lines = [
        [row.experiment.row, str(run["seed"]), *(_change(run, metric) for metric in METRICS)]
        for row, run in runs
    ]
    rose = sum(gain(run, "unseen") > 0 for _, run in runs)
    return [
        _rows_table(rows),
        *_incomplete(results, "main"),
        f"Unseen mIoU rose in {rose} of {len(runs)} runs.",
        f"In the paper: {PAPER['main']}",
        _figure("splits", "Frozen and tuned mIoU of each split"),
        "Each run, with its gains:",
        markdown.table(["split", "seed", *METRICS], lines),
    ]


def _learned_masks(results: Results) -> list[str]:
    rows = results.measured("learned_masks")
    runs = [run for row in rows for run in row.runs]
    rose = sum(gain(run, "unseen") > 0 for run in runs)
    generator = generator_config()
    return [
        markdown.paragraph(
            "The recipe, but for the masks: in training and evaluation they are those of a "
            "generator of objects or none, not drawn from the labels. Each split has its own, of "
            f"configs/generator_shapes_world.py ({generator.num_steps} steps, "
            f"{generator.generator.queries} queries, [generator_training.md]"
            "(generator_training.md)), which learned from the pictures of seed 0 without the "
            "labels of the unseen classes. That of split 0 comes with the package; "
            "`configs/shapes_world.py:learned` and the demonstration use it."
        ),
        _rows_table(rows),
        *_incomplete(results, "learned_masks"),
        markdown.paragraph(
            f"Unseen mIoU rose in {rose} of {len(runs)} runs."
            + "".join(_against_drawn_masks(row, results) for row in rows)
        ),
    ]


def _against_drawn_masks(row: Row, results: Results) -> str:
    split, metric = row.experiment.split, "unseen"
    for drawn in results.measured("main"):
        if drawn.experiment.split == split:
            comparison = row.gain(metric).compared(drawn.gain(metric), "that with drawn masks")
            return f" On split {split} its gain is {comparison}."
    return ""


def _ablations(results: Results) -> list[str]:
    parts = ["## Ablations", "Each changes one thing of the recipe."]
    if row_panels(results):
        parts.append(_figure("ablations", "Seen and unseen mIoU of every row of the tables below"))
    for table in results.ablations:
        parts += [f"### {TITLES[table]}", *_ablation(results, table)]
        if table == "steps" and "steps_held_out" not in results.tables:
            parts.append(_figure("steps", "mIoU against steps"))
    return parts


def _ablation(results: Results, table: str) -> list[str]:
    rows, recipe = results.measured(table), results.recipe()
    leaders = []
    for metric in ("unseen", "hIoU") if recipe is not None else ():
        named = {row.label: row.tuned(metric) for row in rows}
        own = next((row for row in rows if row.is_recipe), recipe)
        leaders.append(_leader(metric, named, own.label, own.tuned(metric)))
    sentence = "; ".join(leaders) or "runs of the recipe to compare with are missing"
    parts = [_rows_table(rows), *_incomplete(results, table)]
    parts.append(markdown.paragraph(f"{sentence[0].upper()}{sentence[1:]}."))
    if table in PAPER:
        parts.append(markdown.paragraph(f"In the paper: {PAPER[table]}"))
    if table in HERE:
        parts.append(markdown.paragraph(HERE[table]))
    return parts


def _leader(metric: str, named: Mapping[str, Estimate], name: str, reference: Estimate) -> str:
    """Which of the named is highest, against the reference; that against the next, if it is it."""
    best = max(named, key=lambda one: named[one].mean)
    words = f"highest {metric}: *{best}*, {named[best]}"
    if best == name:
        others = {other: named[other] for other in named if other != best}
        if not others:
            return words
        name = max(others, key=lambda one: others[one].mean)
        reference = others[name]
    return f"{words}, which is {named[best].compared(reference, f'*{name}*')}"


def _findings(results: Results) -> list[str]:
    lines = []
    for claim, metric, compare in CLAIMS:
        found = compare(results, metric)
        named: dict[str, Estimate] = {}
        for higher, high, lower, low in found:
            named |= {higher: high, lower: low}
        numbers = ", ".join(f"{name} {estimate}" for name, estimate in named.items())
        lines.append([claim, f"{metric}: {numbers}" if found else "not measured", verdict(found)])
    return [
        "## The paper's findings, here",
        markdown.paragraph(
            "A claim puts some means of its line above others. It holds (yes) if each of these "
            "differences counts: exceeds the larger of the two standard deviations over seeds. It "
            "does not (no) if one counts the other way round. Else it is within the spread. Means "
            "of one seed each are not judged."
        ),
        markdown.table(["the paper's claim", "here", "holds?"], lines),
    ]


def _rows_table(rows: Sequence[Row]) -> str:
    lines = [
        [row.label, str(len(row.runs))]
        + [f"{row.frozen(metric)} → {row.tuned(metric)}" for metric in METRICS]
        + [f"{row.gain('unseen'):+}"]
        for row in rows
    ]
    return markdown.table(["", "seeds", *METRICS, "gain of unseen"], lines)


def _steps_table(points: Mapping[str, Mapping[int, Estimate]], best: int) -> str:
    """`points` by metric and step."""
    lines = [
        [f"**{step}** (best hIoU)" if step == best else str(step)]
        + [str(found[step]) for found in points.values()]
        for step in points["hIoU"]
    ]
    return markdown.table(["step", *points], lines)


def _incomplete(results: Results, table: str) -> list[str]:
    missing = [
        f"{row.experiment.row} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
        for row in results.rows(table)
        if (seeds := row.missing_seeds)
    ]
    return [markdown.paragraph(f"**Incomplete.** Not run yet: {'; '.join(missing)}.")] * bool(
        missing
    )


def _change(run: Mapping, metric: str) -> str:
    frozen, tuned = (100 * value(run, index, metric) for index in (0, -1))
    return f"{frozen:.1f} → {tuned:.1f} ({100 * gain(run, metric):+.1f})"


def _figure(name: str, description: str) -> str:
    return f"![{description}]({_figure_file(name)})"


def _figure_file(name: str) -> str:
    return f"shapes_world_{name}.png"
