"""docs/scaling.md says what the committed plans say."""

import dataclasses
import importlib
import io
import json
import pathlib

import pytest
from PIL import Image

from maft_jax.planning import scaling_study
from maft_jax.planning.page import PAGE_FILE, PLANS_FILE, ROOFLINE_FILE, render_page, write_page
from maft_jax.planning.roofline import draw_roofline
from maft_jax.planning.scaling_study import EXPERIMENTS, LARGE, Experiment, run_study
from maft_jax.planning.topology import parse_topology
from tests.planning.plans import ALL_REDUCE, make_costs, make_plan

DOCS = pathlib.Path(__file__).parents[2] / "docs"
COCO = EXPERIMENTS[0]
RECIPE_ON_CARDS = "NVIDIA cards, configs/coco.py: ViT-B/16 on COCO-Stuff, the recipe"


def make_study(**plans) -> dict:
    """plans.json with these plans of configs/coco.py, ":" written "__"."""
    found = {plan.topology: plan.to_json() for plan in plans.values()}
    return {
        "plans": {"coco": found},
        "versions": {"jax": "9.9", "libtpu": None},
        "machine": "an abacus",
    }


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the tables below a heading, up to the next."""
    (section,) = [part for part in page.split("\n## ") if part.startswith(heading)]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_is_made_of_the_committed_plans():
    study = json.loads((DOCS / PLANS_FILE).read_text())
    assert (DOCS / PAGE_FILE).read_text() == render_page(study)
    assert (DOCS / ROOFLINE_FILE).exists()


def trains_by_maft(name: str) -> bool:
    config = importlib.import_module(f"maft_jax.configs.{name}").get_config()
    return (config.task, config.method) == ("train", "maft")


def test_every_configuration_of_maft_is_planned_on_six_machines_up_to_512_chips():
    names = {path.stem for path in (DOCS.parent / "configs").glob("*.py")} - {"__init__"}
    assert {one.name.partition(":")[0] for one in EXPERIMENTS} == set(filter(trains_by_maft, names))
    assert "coco:l14" in [one.name for one in EXPERIMENTS]
    for one in EXPERIMENTS:
        assert one.config.task == "train"
        if one.variant:
            continue
        machines = [parse_topology(name) for name in one.topologies]
        assert len(set(one.topologies)) == len(machines) >= 6
        assert max(machine.num_chips for machine in machines) == 512
    assert {"v5e:16x16", "v5p:8x8x8", "v6e:16x16", "v4:8x8x8", "2xv5e:16x16"} <= set(LARGE)


def test_the_recipe_is_planned_on_the_cards_that_people_rent_and_own():
    (recipe,) = [one for one in EXPERIMENTS if one.key == "coco on cards"]
    assert recipe.batch_per_device is None
    assert {"h100:1", "h100:8", "2xh100:8", "a100-80:8", "a100-40:8"} < set(recipe.topologies)
    assert {"3090:1", "4090:1", "a6000:1", "l4:1", "v100-16:1"} < set(recipe.topologies)


def make_cards_study(plan) -> dict:
    return make_study() | {"plans": {"coco on cards": {plan.topology: plan.to_json()}}}


def test_tables_of_cards_have_their_words_and_the_formulas_flops():
    costs = dataclasses.replace(make_costs(), flops=None)
    page = render_page(make_cards_study(make_plan("h100:8", costs)))
    headings, _, line, *bounds = rows(page, RECIPE_ON_CARDS)
    assert headings[:6] == ["topology", "cards", "batch", "memory, GiB", "", "TFLOP"]
    assert line == ["h100:8", "8", "16", "5.00 of 59.33", "8%", "19.7", "819", "900.0"]
    assert bounds[0][4] == "hosts, ms" and bounds[0][-1] == "card-hours"


def test_a_card_that_is_too_small_keeps_its_numbers():
    """The compiler for cards refuses nothing."""
    costs = dataclasses.replace(make_costs(fits=False, images=16), error="", flops=None)
    page = render_page(make_cards_study(make_plan("3090:1", costs)))
    line = rows(page, RECIPE_ON_CARDS)[2]
    assert line[3:5] == ["19.00 of 17.77", "**107%**"]


def test_tables_hold_the_plans():
    plan = make_plan("v5e:16x16", images=16)
    small = make_plan("v5e:2x4", costs=make_costs(fits=False, images=16), images=16)
    page = render_page(make_study(a=plan, b=small))
    found = {line[0]: line for line in rows(page, "configs/coco.py: ")[2:4]}
    assert found["v5e:16x16"][1:5] == ["256", "4096", "19.00 of 15.75", "121%"]
    assert found["v5e:16x16"][5:] == ["98.5", "819", "900.0"]
    assert found["v5e:2x4"][3] == "**does not fit**"
    (bounds,) = [line for line in rows(page, "configs/coco.py: ") if len(line) == 10][2:]
    assert bounds[:6] == ["v5e:16x16", "800", "1e+03", "15", "0", "1e+03"]
    assert bounds[6:] == ["4,096", "80%", "2", "5.1e+02"]
    assert "Not compiled yet: v6e:2x4" in page and "jax 9.9." in page


def test_collectives_are_compared_with_the_trainable_parameters():
    gather = dataclasses.replace(ALL_REDUCE, kind="all-gather", payload_bytes=5e6, elements=7)
    costs = dataclasses.replace(make_costs(), traffic=(ALL_REDUCE, gather))
    page = render_page(make_study(a=make_plan("v5e:16x16", costs)))
    line = rows(page, "Bytes of collectives")[-1]
    assert line[:5] == ["coco", "v5e:16x16", "225,000,000", "1.000", "900.00"]
    assert line[5:] == ["900.00", "5.00", "", "", "", ""]


@pytest.mark.parametrize(("payload", "verdict"), [(9e8, "at least"), (9e10, "not everywhere")])
def test_scaling_is_judged_by_its_worst(payload, verdict):
    traffic = (dataclasses.replace(ALL_REDUCE, payload_bytes=payload),)
    large = dataclasses.replace(make_costs(), traffic=traffic)
    page = render_page(make_study(a=make_plan("v5e:2x4"), b=make_plan("v5e:16x16", large)))
    line = rows(page, "From 8 to 512 chips")[-1]
    efficiency = (1 + 0.015) / (1 + payload / 9e8 * 0.015)
    assert line[:4] == ["coco", "v5e:2x4", "v5e:16x16", "8 → 256"]
    assert line[-1] == f"{efficiency:.1%}"
    assert f"The lowest is {efficiency:.1%}, {verdict} 95%" in " ".join(page.split())


def test_nothing_is_compiled_yet():
    page = render_page(make_study())
    assert page.count("**Incomplete.**") == len(EXPERIMENTS) + 1
    assert ROOFLINE_FILE not in page


def test_plans_of_former_experiments_are_refused():
    with pytest.raises(ValueError, match="v5e:1x1"):
        render_page(make_study(a=make_plan("v5e:1x1")))


def test_written_page_stands_beside_its_plans_and_picture(tmp_path):
    study = make_study(a=make_plan("v5e:2x4"), b=make_plan("v6e:2x4"))
    assert write_page(study, tmp_path).read_text() == render_page(study)
    assert json.loads((tmp_path / PLANS_FILE).read_text()) == json.loads(json.dumps(study))
    with Image.open(tmp_path / ROOFLINE_FILE) as picture:
        assert picture.width > 500


def test_roofline_needs_a_plan_that_fits():
    picture = Image.open(io.BytesIO(draw_roofline([make_plan(), make_plan("v4:2x2x1")], "ab")))
    assert picture.format == "PNG"
    with pytest.raises(ValueError, match="no plan fits"):
        draw_roofline([make_plan(costs=make_costs(fits=False))], ["a"])


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, monkeypatch):
    made = []

    def make(config, topology, batch_per_device):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(topology.name)
        return make_plan(topology.name, images=batch_per_device)

    monkeypatch.setattr(scaling_study, "make_plan", make)
    experiments = [
        Experiment("coco", "", COCO.get_config, {}, 2, ("v5e:2x4", "v4:2x2x1")),
        Experiment("coco:l14", "", COCO.get_config, {}, 4, ("v5e:2x4",)),
    ]
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, experiments)
    made.clear()
    study = run_study(tmp_path, experiments)
    assert made == ["v5e:2x4"]
    assert {name: list(plans) for name, plans in study["plans"].items()} == {
        "coco": ["v5e:2x4", "v4:2x2x1"],
        "coco:l14": ["v5e:2x4"],
    }
    assert study["plans"]["coco:l14"]["v5e:2x4"]["batch_per_device"] == 4
    assert study["versions"]["libtpu"]
    damaged = tmp_path / "coco_v4_2x2x1.json"
    damaged.write_text(damaged.read_text().replace('"num_steps": ', '"num_steps": 9'))
    made.clear()
    assert run_study(tmp_path, experiments) == study
    assert made == ["v4:2x2x1"]
