"""docs/shapes_world.md says what the runs say, and is made of the runs that are committed."""

import io
import json
import pathlib
import statistics

import pytest
from PIL import Image

from maft_jax.shapes_world.experiments import EXPERIMENTS, Experiment
from maft_jax.shapes_world.page import PAGE_FILE, headline, render_page, write_page
from maft_jax.shapes_world.paper_claims import PAPER
from maft_jax.shapes_world.study_files import read_study
from maft_jax.shapes_world.study_results import TITLES, Estimate, Results
from maft_jax.weights import BUILT_IN

DOCS = pathlib.Path(__file__).parents[2] / "docs"
SEEDS = (0, 1, 2)
NOISE = {0: -0.01, 1: 0.0, 2: 0.015}
"""Added to all tuned scores of a seed."""

STEPS_SCORES = {200: (0.3, 0.2), 300: (0.3, 0.12)}
HELD_OUT_SCORES = {100: (0.3, 0.3), 200: (0.4, 0.2)}
STEPS = tuple(Experiment("steps", str(n), {"num_steps": n}) for n in STEPS_SCORES)
HELD_OUT = tuple(
    Experiment("steps_held_out", str(n), {"num_steps": n}, held_out_split=1)
    for n in HELD_OUT_SCORES
)
EXAMPLES = (
    *HELD_OUT,
    Experiment("main", "split 0"),
    Experiment("main", "split 1", split=1),
    Experiment("losses", "distillation alone", {"loss.mask_aware_weight": 0.0}),
    Experiment("losses", "mask-aware alone", {"loss.distillation_weight": 0.0}),
    Experiment("losses", "both"),
    Experiment("trainable", "as in the paper"),
    Experiment("trainable", "everything", {"optimizer.trainable": (".*",)}),
    *STEPS,
    Experiment("logit_scale", "20", {"loss.logit_scale": 20.0}, seeds=(0,)),
)
TUNED = {
    "split 0": (0.30, 0.20),
    "split 1": (0.34, 0.10),
    "distillation alone": (0.12, 0.11),
    "mask-aware alone": (0.31, 0.19),
    "everything": (0.40, 0.50),
    "20": (0.25, 0.15),
}
"""Seen and unseen mIoU before noise; frozen, both are 0.1."""
CURVE = {
    "settings": {"num_pictures": 321, "batch_size": 7},
    "loss": [3.0, 2.0, 1.0, 0.5],
    "quiz": [
        {"step": 2, "object": 0.1, "pattern": 0.2, "color": 0.3},
        {"step": 4, "object": 0.41, "pattern": 0.52, "color": 0.63},
    ],
}


def score(step: int, seen: float, second: float, name: str = "unseen") -> dict:
    found = {"step": step, "seen": seen, name: second}
    if name == "unseen":
        found["hiou"] = 2 * seen * second / (seen + second)
    return found


def make_run(experiment: Experiment, seed: int) -> dict:
    noise = NOISE[seed]
    if experiment in HELD_OUT:
        step = experiment.changes["num_steps"]
        tuned = (value + noise for value in HELD_OUT_SCORES[step])
        scores = [score(0, 0.1, 0.1, "held_out"), score(step, *tuned, "held_out")]
    elif experiment in STEPS:
        step = experiment.changes["num_steps"]
        seen, unseen = STEPS_SCORES[step]
        scores = [score(0, 0.1, 0.1), score(step, seen, unseen + noise)]
    else:
        seen, unseen = TUNED[experiment.row]
        scores = [score(0, 0.1, 0.1), score(100, seen + noise, unseen + noise)]
    return {
        "table": experiment.table,
        "row": experiment.row,
        "seed": seed,
        "split": experiment.split,
        "settings": json.loads(json.dumps(experiment.changes)),
        "scores": scores,
        "seconds": 90.0,
    }


def make_study(num_steps: int = 100, without: tuple[tuple[str, int], ...] = ()) -> dict:
    """Rows that are the recipe are there once, in table main."""
    runs = [
        make_run(experiment, seed)
        for experiment in EXAMPLES
        for seed in experiment.seeds
        if (experiment.table == "main" or experiment.changes)
        and (experiment.row, seed) not in without
    ]
    machine = {"versions": {"jax": "9.9", "torch": None}, "machine": "an abacus"}
    return {"runs": runs, "num_steps": num_steps, **machine}


def lines_with(page: str, start: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(start)]


def section(page: str, heading: str) -> str:
    """Text below a heading, up to the next, on one line."""
    (found,) = [part for part in page.split("\n#") if part.lstrip("# ").startswith(heading)]
    return " ".join(found.split())


def expected(values: list[float], sign: str = "") -> str:
    percent = [100 * value for value in values]
    return f"{statistics.mean(percent):{sign}.1f} ± {statistics.stdev(percent):.1f}"


def with_noise(value: float) -> list[float]:
    return [value + NOISE[seed] for seed in SEEDS]


def test_table_has_means_sample_deviations_and_the_gain_of_unseen():
    page = render_page(make_study(), CURVE, EXAMPLES)
    seen, unseen = with_noise(0.30), with_noise(0.20)
    hiou = [statistics.harmonic_mean(pair) for pair in zip(seen, unseen, strict=True)]
    cells = [
        "split 0 (recipe)",
        "3",
        *(f"10.0 ± 0.0 → {expected(values)}" for values in (seen, unseen, hiou)),
        expected([value - 0.1 for value in unseen], "+"),
    ]
    assert f"| {' | '.join(cells)} |" in page


def test_main_table_lists_each_run_and_counts_those_whose_unseen_rose():
    page = render_page(make_study(), CURVE, EXAMPLES)
    runs = lines_with(page, "| split 1 | ")
    assert runs[1:] == [
        "| split 1 | 0 | 10.0 → 33.0 (+23.0) | 10.0 → 9.0 (-1.0) | 10.0 → 14.1 (+4.1) |",
        "| split 1 | 1 | 10.0 → 34.0 (+24.0) | 10.0 → 10.0 (+0.0) | 10.0 → 15.5 (+5.5) |",
        "| split 1 | 2 | 10.0 → 35.5 (+25.5) | 10.0 → 11.5 (+1.5) | 10.0 → 17.4 (+7.4) |",
    ]
    assert "Unseen mIoU rose in 4 of 6 runs." in page


def test_row_that_equals_the_recipe_has_the_runs_of_table_main():
    page = render_page(make_study(), CURVE, EXAMPLES)
    (recipe,) = lines_with(page, "| split 0 (recipe) |")
    (same,) = lines_with(page, "| both (recipe) |")
    assert same.partition("recipe")[2] == recipe.partition("recipe")[2]
    assert "Incomplete" not in page


def test_minutes_are_of_different_runs():
    study = make_study()
    first = next(run for run in study["runs"] if run["row"] == "split 0")
    reused = {**first, "table": "losses", "row": "both"}
    study["runs"].append(reused)
    num_runs = len(study["runs"]) - 1
    page = " ".join(render_page(study, CURVE, EXAMPLES).split())
    assert f"{num_runs} runs, {num_runs * 1.5:.0f} minutes in total" in page
    assert "Machine: an abacus. Versions: jax 9.9." in page


def test_row_of_one_seed_has_no_spread_and_is_compared_by_that_of_the_other():
    text = section(render_page(make_study(), CURVE, EXAMPLES), TITLES["logit_scale"])
    assert "| 20 | 1 | 10.0 → 24.0 | 10.0 → 14.0 | 10.0 → 17.7 | +4.0 |" in text
    spread = statistics.stdev(100 * noise for noise in NOISE.values())
    below = 14.0 - statistics.mean(100 * value for value in with_noise(0.20))
    assert (
        f"Highest unseen: *20*, 14.0, which is {-below:.1f} below *split 0 (recipe)*, more than "
        f"the spread over seeds ({spread:.1f});" in text
    )


def test_sentence_names_the_row_that_is_ahead_and_whether_it_counts():
    text = section(render_page(make_study(), CURVE, EXAMPLES), TITLES["losses"])
    spread = statistics.stdev(100 * noise for noise in NOISE.values())
    assert (
        f"Highest unseen: *both (recipe)*, {expected(with_noise(0.2))}, which is 1.0 above "
        f"*mask-aware alone*, within the spread over seeds ({spread:.1f}); highest hIoU: " in text
    )
    assert PAPER["losses"] in text


@pytest.mark.parametrize(
    ("num_steps", "sentence"),
    [
        (100, "`config.num_steps` is 100: this table chose it."),
        (
            200,
            "`config.num_steps` is 200, not the best step of this table, 100, whose harmonic mean",
        ),
        (150, "`config.num_steps` is 150, not the best step of this table, 100."),
    ],
)
def test_table_of_held_out_classes_says_whether_the_configuration_follows_it(num_steps, sentence):
    page = render_page(make_study(num_steps), CURVE, EXAMPLES)
    text = section(page, TITLES["steps_held_out"])
    assert sentence in text
    values = expected(with_noise(0.3))
    assert f"| **100** (best hIoU) | {values} | {values} | {values} |" in text


def test_verdicts_follow_the_rule():
    page = render_page(make_study(), CURVE, EXAMPLES)
    verdicts = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-1].removesuffix(" |")
        for line in page.partition("holds? |")[2].splitlines()[2:]
    }
    assert verdicts == {
        "Tuning raises unseen mIoU.": "within the spread",  # split 0 rises, split 1 does not
        "The mask-aware loss brings the gain.": "yes",
        "Self-distillation keeps transferability.": "within the spread",
        "Masks from a middle layer on are best.": "-",
        "Training attention and LayerNorms alone is best.": "no",
        "Training everything is worse.": "no",
        "SmoothL1 is the best mask-aware loss.": "-",
        "Too many steps harm unseen classes.": "yes",
    }
    steps = f"step 200 {expected(with_noise(0.20))}, step 300 {expected(with_noise(0.12))}"
    assert f"unseen: {steps} | yes |" in page


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        (Estimate(5.0, 1.0), Estimate(3.0, 1.9), "yes"),
        (Estimate(3.0, 1.0), Estimate(5.0, 1.9), "no"),
        (Estimate(5.0, 1.0), Estimate(3.0, 2.0), "within the spread"),
        (Estimate(5.0, None), Estimate(3.0, 1.9), "yes"),
        (Estimate(5.0, None), Estimate(3.0, None), "one seed"),
    ],
)
def test_difference_counts_when_it_exceeds_the_larger_spread(one, other, outcome):
    assert one.is_above(other) == outcome


def test_table_without_some_runs_names_them():
    without = (("mask-aware alone", 0), ("mask-aware alone", 2), ("everything", 1))
    page = render_page(make_study(without=without), CURVE, EXAMPLES)
    missing = "**Incomplete.** Not run yet: mask-aware alone (seeds 0, 2)."
    assert missing in section(page, TITLES["losses"])
    (line,) = lines_with(page, "| mask-aware alone |")
    assert "| 1 | 10.0 → 31.0 |" in line
    assert "everything (seed 1)" in section(page, TITLES["trainable"])
    assert page.count("Incomplete") == 2


def test_ablations_without_the_recipe_are_not_compared():
    study = make_study(without=tuple(("split 0", seed) for seed in SEEDS))
    page = render_page(study, CURVE, EXAMPLES)
    text = section(page, TITLES["losses"])
    assert "Runs of the recipe to compare with are missing." in text
    assert "both (seeds 0, 1, 2)" in text


def test_table_without_runs_is_left_out():
    study = make_study()
    study["runs"] = [run for run in study["runs"] if run["table"] == "losses"]
    page = render_page(study, CURVE, EXAMPLES)
    assert f"### {TITLES['losses']}" in page
    for table in ("main", "steps_held_out", "steps", "trainable"):
        assert f"# {TITLES[table]}\n" not in page
    assert "shapes_world_splits.png" not in page and "shapes_world_steps.png" not in page


@pytest.mark.parametrize("change", [{"settings": {"num_steps": 7}}, {"row": "?"}, {"split": 2}])
def test_run_of_no_experiment_is_refused(change):
    study = make_study()
    study["runs"][-1] |= change
    with pytest.raises(ValueError, match=r"expected a run of EXPERIMENTS.*run the study again"):
        render_page(study, CURVE, EXAMPLES)


def test_runs_of_several_lengths_make_a_curve():
    experiments = [
        Experiment("steps", "300", {"num_steps": 300}, (0, 1)),
        Experiment("steps", "50", {"num_steps": 50}, (0, 1)),
    ]
    runs = [
        {**make_run(EXAMPLES[1], seed), "table": "steps", "row": one.row, "settings": one.changes}
        for one in experiments
        for seed in one.seeds
    ]
    for run in runs:
        run["scores"] = [score(0, 0.1, 0.1), score(int(run["row"]), 0.2, 0.3 + NOISE[run["seed"]])]
    points = Results(runs, experiments, 100).step_points("steps", "unseen")
    assert list(points) == [0, 50, 300]
    assert f"{points[300]}" == expected([0.29, 0.30])


def test_learned_masks_have_their_section_their_row_and_their_machine():
    changes = {"proposals.path": "learned"}
    other = Experiment("proposal_quality", "20", {"proposals.generator": "superpixels"})
    experiments = (
        *EXAMPLES,
        other,
        Experiment("proposal_quality", "learned masks", changes),
        Experiment("learned_masks", "split 0", changes),
        Experiment("learned_masks", "split 1", changes, split=1),
    )
    study = make_study()
    study["runs"] += [make_run(other, seed) for seed in other.seeds]
    study["learned_masks"] = {
        "runs": [make_run(experiments[-2], seed) for seed in SEEDS],
        "versions": {"jax": "10.1"},
        "machine": "a slide rule",
    }
    page = render_page(study, CURVE, experiments)
    learned = section(page, "Learned masks")
    assert "Not run yet: split 1 (seeds 0, 1, 2)" in learned
    assert "rose in 3 of 3 runs" in learned
    assert "On split 0 its gain is 0.0 above that with drawn masks, within" in learned
    (row,) = lines_with(page, "| learned masks |")
    assert expected([0.19, 0.20, 0.215]) in row and expected([0.19, 0.20, 0.215]) in learned
    introduction = " ".join(page.split("## The world")[0].split())
    assert "Machine: an abacus. Versions: jax 9.9." in introduction
    assert "3 runs, and the training of their generators. Machine: a slide rule." in introduction


def test_written_folder_has_the_page_and_the_figures_that_it_shows(tmp_path):
    study = make_study()
    write_page(study, CURVE, tmp_path, EXAMPLES)
    page = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert page == render_page(study, CURVE, EXAMPLES)
    names = {"clip", "splits", "steps", "ablations"}
    figures = {f"shapes_world_{name}.png" for name in names}
    assert {path.name for path in tmp_path.iterdir()} == {PAGE_FILE, *figures}
    for name in figures:
        assert f"]({name})" in page
        content = (tmp_path / name).read_bytes()
        width, height = Image.open(io.BytesIO(content)).size
        assert 850 <= width <= 950 and height > 250
        assert len(content) < 150_000


def test_every_table_of_the_study_has_a_title():
    assert {one.table for one in EXPERIMENTS} <= set(TITLES)
    assert set(PAPER) <= set(TITLES)


def test_committed_page_is_made_of_the_committed_runs():
    study = read_study(DOCS / "shapes_world")
    curve = json.loads(BUILT_IN["built-in:shapes_world"].with_suffix(".json").read_text())
    page = (DOCS / PAGE_FILE).read_text(encoding="utf-8")
    assert page == render_page(study, curve)
    for name in ("clip", "splits", "steps", "ablations"):
        figure = f"shapes_world_{name}.png"
        assert (figure in page) <= (DOCS / figure).is_file()


def test_readme_says_what_the_runs_say():
    study = read_study(DOCS / "shapes_world")
    assert headline(study) in (DOCS.parent / "README.md").read_text(encoding="utf-8")
