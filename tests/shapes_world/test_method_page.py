"""docs/methods_study.md says what its runs say, pair by pair, and is made of those committed."""

import pathlib
import statistics

import pytest
from scipy.stats import ttest_rel

from maft_jax.shapes_world.experiments import (
    CONVNEXT_EXPERIMENTS,
    CONVNEXT_SEEDS,
    METHOD_EXPERIMENTS,
    METHOD_STEPS,
    METHODS,
    SECOND_CLIP_EXPERIMENTS,
    SEEDS,
)
from maft_jax.shapes_world.method_page import (
    CLAIMS,
    METHOD_PAGE_FILE,
    render_method_page,
    write_method_page,
)
from maft_jax.shapes_world.method_results import FROZEN, METRICS, Difference, MethodResults
from maft_jax.shapes_world.method_tables import compared
from maft_jax.shapes_world.method_times import relative_times
from maft_jax.shapes_world.study_files import read_methods
from maft_jax.shapes_world.study_results import as_json

DOCS = pathlib.Path(__file__).parents[2] / "docs"

GAINS = {
    "MAFT": 0.1,
    "MAFT on true masks": 0.13,
    "MaskCLIP++": 0.101,
    "LoRA": 0.05,
    "MAFT+": 0.12,
    "MAFT+ without transfer": 0.1,
    "Mask-Adapter": -0.1,
}
"""Above frozen, of all numbers; MaskCLIP++'s is uncertain."""


def make_run(experiment, seed: int) -> dict:
    pair = 0.02 * experiment.split + 0.05 * seed
    wobble = 0.01 * (-1) ** (experiment.split + seed) if experiment.row == "MaskCLIP++" else 0
    scores = [
        {"step": step, **dict.fromkeys(METRICS.values(), 0.2 + pair + gain)}
        for step, gain in ((0, 0), (METHOD_STEPS, GAINS[experiment.row] + wobble + 0.001 * seed))
    ]
    return {
        "table": experiment.table,
        "row": experiment.row,
        "seed": seed,
        "split": experiment.split,
        "settings": as_json(experiment.changes),
        "scores": scores,
        "seconds": 90.0,
        **({"relative_time": 0.75} if experiment.row == "LoRA" else {}),
    }


def make_study() -> dict:
    runs = [make_run(one, seed) for one in METHOD_EXPERIMENTS for seed in one.seeds]
    return {"runs": runs, "num_steps": 50, "versions": {"jax": "9.9"}, "machine": "an abacus"}


def cells(page: str, heading: str, row: str) -> list[str]:
    (line,) = [
        line for line in page.partition(heading)[2].splitlines() if line.startswith(f"| {row} |")
    ][:1]
    return line.split(" | ")[1:]


def test_every_method_has_every_split_and_seed_and_no_other_steps():
    pairs = {(one.row, one.split, seed) for one in METHOD_EXPERIMENTS for seed in one.seeds}
    assert len(pairs) == len(METHODS) * 3 * len(SEEDS)
    assert not any(
        "num_steps" in changes or "batch_size" in changes for changes in METHODS.values()
    )


def test_table_has_means_and_deviations_over_pairs_and_the_time_beside_mafts():
    page = render_method_page(make_study())
    frozen = [20 + 2 * split + 5 * seed for split in range(3) for seed in SEEDS]
    expected = f"{statistics.mean(frozen):.1f} ± {statistics.stdev(frozen):.1f}"
    assert cells(page, "## Results", FROZEN)[:5] == [expected] * 5
    assert cells(page, "## Results", "LoRA")[-1] == "0.75 |"
    assert cells(page, "## Results", "MaskCLIP++")[-1] == "- |"


def test_times_are_those_of_neighbours():
    seconds = {"MAFT": [1.0, 4.0, 2.0], "LoRA": [1.5, 5.0, 3.0]}
    assert relative_times(seconds, "MAFT") == {"MAFT": 1.0, "LoRA": 1.5}


def test_differences_are_taken_pair_by_pair():
    results = MethodResults(make_study()["runs"], METHOD_EXPERIMENTS)
    found = results.difference("MAFT on true masks", "MAFT", "hIoU")
    assert found.values == pytest.approx([3.0] * 9) and found.verdict == "higher"
    assert results.difference("LoRA", "MAFT", "seen").verdict == "lower"
    assert results.difference("MaskCLIP++", "MAFT", "unseen").verdict == "open"
    page = render_method_page(make_study())
    assert cells(page, "Against MAFT:", "LoRA")[1].startswith("**-5.0 ± 0.0**, 0 of 9")
    assert cells(page, "Against MAFT:", "MaskCLIP++")[1].endswith("5 of 9")


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, -2.0])
def test_verdict_is_that_of_scipys_paired_test(shift):
    first = [shift + x for x in (0.3, -1.2, 2.2, 0.9, -0.4, 1.1)]
    second = [0.1, 0.2, -0.3, 0.5, 0.2, -0.1]
    difference = Difference(tuple(a - b for a, b in zip(first, second, strict=True)))
    test = ttest_rel(first, second)
    side = "higher" if test.statistic > 0 else "lower"
    assert difference.verdict == (side if test.pvalue < 0.05 else "open")
    assert difference.mean / difference.standard_error == pytest.approx(test.statistic)


def test_one_pair_is_not_judged():
    assert Difference((3.0,)).verdict == "open"


def test_claims_are_judged_by_the_paired_test():
    page = render_method_page(make_study())
    table = page.partition("holds? |\n")[2].partition("\n\n")[0]
    lines = table.splitlines()[1:]
    verdicts = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-1] for line in lines}
    answers = {"LoRA": "no |", "MaskCLIP++": "cannot be told |", "MAFT on true masks": "yes |"}
    for method, other, _, claim in CLAIMS:
        assert verdicts[claim] == ("yes |" if other == FROZEN else answers[method])
    assert len(verdicts) == len(CLAIMS)


def test_summary_names_methods_by_the_side_that_they_are_on():
    page = " ".join(render_method_page(make_study()).split())
    assert (
        "hIoU against MAFT: higher with *MAFT on true masks*; lower with *LoRA*; cannot be told "
        "of *MaskCLIP++*." in page
    )
    assert (
        "Unseen mIoU against the frozen CLIP: higher with *MAFT*, *MAFT on true masks*, "
        "*MaskCLIP++*, *LoRA*." in page
    )


def test_page_without_some_runs_names_them():
    study = make_study()
    study["runs"] = [run for run in study["runs"] if (run["row"], run["seed"]) != ("LoRA", 2)]
    page = " ".join(render_method_page(study).split())
    assert "Not run yet: LoRA, split 0, seed 2; LoRA, split 1, seed 2; LoRA, split 2" in page
    assert "5.0 ± 0.0**, 6 of 6" in page


def test_second_clip_has_a_section_of_its_own():
    study = make_study()
    runs = [make_run(one, seed) for one in SECOND_CLIP_EXPERIMENTS for seed in one.seeds]
    quiz = {"object": 0.417}
    study["second_clip"] = {
        "runs": [run | {"quiz": quiz} for run in runs],
        "versions": {"jax": "10.1"},
        "machine": "a slide rule",
    }
    page = render_method_page(study)
    second = " ".join(page.partition("## A second CLIP")[2].split())
    assert "names 42% of single objects" in second and "**Runs**: 36, of 9 pairs" in second
    assert "unseen mIoU of 27.0, the CLIP above 27.0" in second
    assert "Machine: a slide rule" in second and "Versions: jax 10.1" in second
    for row in METHODS:
        assert cells(page, "## A second CLIP", row)[:5] == cells(page, "## Results", row)[:5]
    alone = render_method_page(make_study())
    middle = "\n\n## What is equal"
    both, (before, rest) = page.partition("What the [claims]")[2], alone.split(middle, 1)
    assert page.startswith(before) and rest.partition("Not run yet")[0] in page
    assert "of 9 pairs:" in " ".join(both.partition(middle)[0].split())
    assert "all of this is about one CLIP" in alone and "about one CLIP: with" not in page


def test_claims_are_sorted_by_what_both_clips_say():
    first = make_study()["runs"]
    second = [make_run(one, seed) for one in SECOND_CLIP_EXPERIMENTS for seed in (0, 1)]
    for run in second:
        if run["row"] == "LoRA":
            run["scores"][1]["hiou"] += 0.3
    results = (
        MethodResults(first, METHOD_EXPERIMENTS),
        MethodResults(second, SECOND_CLIP_EXPERIMENTS),
    )
    lines = " ".join(compared(*results, CLAIMS).split()).split("* ", 1)[1]
    both, rest = lines.split(". * cannot be told of either: ")
    neither, differs = rest.split(". * is not judged alike: ")
    assert both.startswith("holds with both: *MAFT* above *frozen* in unseen; ")
    assert both.endswith("*LoRA* above *frozen* in unseen")
    assert neither == "*MaskCLIP++* above *MAFT* in hIoU"
    assert differs == "*LoRA* above *MAFT* in hIoU (no, with the second yes)."


def test_convnext_has_a_section_of_its_own_and_is_compared_with_itself():
    study = make_study()
    runs = [make_run(one, seed) for one in CONVNEXT_EXPERIMENTS for seed in one.seeds]
    runs = [run | {"quiz": {"object": 0.5}} for run in runs]
    for run in runs:
        for scores in run["scores"]:
            scores["unseen"] += 0.3
    study["convnext"] = {"runs": runs, "versions": {"jax": "10.1"}, "machine": "a slide rule"}
    page = render_method_page(study)
    section = " ".join(page.partition("## With a ConvNeXt")[2].split())
    assert "names 50% of single objects" in section and "Machine: a slide rule" in section
    assert '*MAFT+* `method="maft_plus"`, `loss.transfer="panoptic"`' in section
    frozen = [20 + 2 * split + 5 * seed for split in range(3) for seed in CONVNEXT_SEEDS]
    expected = f"{statistics.mean(frozen):.1f} ± {statistics.stdev(frozen):.1f}"
    assert cells(page, "## With a ConvNeXt", FROZEN)[0] == expected
    assert cells(page, "Claims, with this CLIP", "They do so more than MAFT's losses.") == [
        "hIoU: MAFT+ less MAFT +2.0 ± 0.0",
        "yes |",
    ]
    verdict = cells(page, "Claims, with this CLIP", "It names masks of unseen classes better.")
    assert verdict[1] == "no |"
    seeds = 0.1 * statistics.mean(CONVNEXT_SEEDS)  # which `make_run` adds
    gains = (f"| Mask-Adapter | **{seeds - 10:+.1f} ± 0.0**", f"| MAFT+ | **{seeds + 12:+.1f} ±")
    for line in gains:
        assert line in section.partition("Against the frozen CLIP:")[2]


@pytest.mark.parametrize("change", [{"settings": {"num_steps": 7}}, {"row": "?"}, {"split": 3}])
def test_run_of_no_experiment_is_refused(change):
    study = make_study()
    study["runs"][-1] |= change
    with pytest.raises(ValueError, match=r"expected a run of its table.*study again"):
        render_method_page(study)


def test_committed_page_is_made_of_the_committed_runs(tmp_path):
    write_method_page(read_methods(DOCS / "shapes_world"), tmp_path)
    assert (tmp_path / METHOD_PAGE_FILE).read_bytes() == (DOCS / METHOD_PAGE_FILE).read_bytes()
