"""All of docs/performance.md in one run: which parts, what a budget leaves out, what fails."""

import dataclasses
import json
from collections.abc import Callable

import pytest

from maft_jax.benchmarks import suite
from maft_jax.benchmarks.models import load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.report import describe_part, describe_suite_end, describe_suite_part
from maft_jax.benchmarks.suite import SUITE, run_suite
from maft_jax.benchmarks.training import measure_training
from tests.benchmarks.test_benchmark_command import command
from tests.runs import finish, small_config, start

NO_DATA = {"data.root": "unused"}


def test_every_combination_is_measured_and_the_goals_come_first():
    steps = [part for part in SUITE if part.measured == "step"]
    combinations = {(*part.settings.values(), part.times_batch) for part in steps}
    assert len(steps) == len(combinations) == 8
    recipe, large, training, evaluation = SUITE[:4]
    assert (recipe.settings["model.attention"], recipe.times_batch) == ("auto", 1)
    assert (large.settings, large.times_batch) == (recipe.settings, 4)
    assert (training.measured, evaluation.measured) == ("training", "evaluation")
    assert [part for part in SUITE if part.beside_torch] == [recipe, evaluation]
    assert len({part.name for part in SUITE}) == len(SUITE)


@dataclasses.dataclass
class Clock:
    """Stands for time.monotonic."""

    now: float = 5.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def measured(monkeypatch) -> Callable:
    """Runs the suite, each part of which takes `took` seconds; {name: raised}."""
    clock = Clock()
    monkeypatch.setattr(suite, "time", clock)

    def run(seconds: float, took: float, errors: dict | None = None) -> tuple[dict, list]:
        def measure(config, options, part, total):
            clock.now += took
            if part.name in (errors or {}):
                raise errors[part.name]
            return {"measured": part.measured, part.measured: {}}

        monkeypatch.setattr(suite, "_measure", measure)
        seen = []

        def on_part(results, name):
            seen.append((name, json.loads(json.dumps(results))))

        results = run_suite(small_config(NO_DATA), BenchmarkOptions(), seconds, 0.0, on_part)
        return results, seen

    return run


def test_a_part_begins_if_there_is_time_for_the_longest_before_it(measured):
    results, seen = measured(seconds=480.0, took=100.0)
    done = [part.name for part in SUITE[:4]]  # at 5, 105, 205 and 305 s; at 405 75 s are left
    assert list(results["parts"]) == done
    assert results["left_out"] == [part.name for part in SUITE[4:]]
    assert [name for name, _ in seen] == done
    for number, (_, written) in enumerate(seen, start=1):
        assert list(written["parts"]) == done[:number]
        assert len(written["left_out"]) == len(SUITE) - number
    told = describe_suite_end(results)
    assert told.startswith("4 parts measured in 405 s of 480 s")
    assert f"no time for: {SUITE[-1].name}" in told


def test_a_part_that_fails_keeps_no_other_from_being_measured(measured):
    errors = {SUITE[1].name: RuntimeError("RESOURCE_EXHAUSTED: 70 GB\nand more")}
    results, seen = measured(seconds=1e6, took=1.0, errors=errors)
    assert results["failed"] == {SUITE[1].name: "RESOURCE_EXHAUSTED: 70 GB"}
    assert len(results["parts"]) == len(SUITE) - 1 and not results["left_out"]
    assert "failed: RESOURCE_EXHAUSTED" in describe_suite_part(seen[1][1], SUITE[1].name)


def test_parts_change_settings_and_batch():
    config = small_config(NO_DATA)
    part = SUITE[-1]
    changed = suite._with_settings(config, part)
    assert (changed.batch_size, changed.model.attention) == (4 * config.batch_size, "xla")
    assert changed.model.scan_blocks == part.settings["model.scan_blocks"]
    assert changed.model.pretrained == config.model.pretrained


@pytest.mark.slow
def test_training_steps_read_their_batches():
    model = load_model(small_config(NO_DATA))
    found = measure_training(model, num_steps=4, longest=60.0, num_photos=8)
    assert found["steps"] == found["steps_asked_for"] == 4
    assert found["images_per_second"] == pytest.approx(4 * 8 / found["seconds"])
    assert 0 < found["p50_seconds"] <= found["p95_seconds"] <= found["seconds"]
    assert 0 <= found["share_waited_for_input"] <= 1
    assert "4 of 4 steps of 8 images" in describe_part("training", "training", found)
    stopped = measure_training(model, num_steps=1000, longest=0.0, num_photos=8)
    assert stopped["steps"] == 2, "the one that ran when time was over, and the one after it"


@pytest.mark.slow
def test_the_command_keeps_what_found_time(tmp_path):
    path = tmp_path / "numbers.json"
    options = ("--minutes=1", "--steps=2", "--warmup=0", "--compare=torch", f"--json={path}")
    output = finish(start(command(*options)))
    found = json.loads(path.read_text())
    assert found["parts"] and not found["failed"]
    recipe = found["parts"][SUITE[0].name]["step"]
    assert recipe["torch"]["loss_difference"] < 1e-6
    assert len(found["parts"]) + len(found["left_out"]) == len(SUITE)
    assert SUITE[0].name in output and "parts measured in" in output
