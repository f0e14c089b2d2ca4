"""maft_jax.cli.benchmark as a user gives it, in a process of its own."""

import json
import sys

import pytest

from tests.runs import SETTINGS, finish, start

NO_DATA = {"data.root": "unused", "evaluation.short_side": 64}


def command(*options: str, **changes) -> list[str]:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = SETTINGS | NO_DATA | changes
    return [
        sys.executable,
        "-m",
        "maft_jax.cli.benchmark",
        "--config=configs/folder.py",
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *options,
    ]


@pytest.mark.slow
def test_step_and_input(tmp_path):
    path = tmp_path / "new folder" / "numbers.json"
    options = ("--what=step,input", "--steps=2", "--warmup=1")
    output = finish(start(command(*options, f"--json={path}", batch_size=2)))
    found = json.loads(path.read_text())
    assert set(found) == {"provenance", "options", "config", "step", "input"}
    step, pipeline = found["step"]["pipelined"], found["input"]
    assert pipeline["cores_for_the_step"] == pytest.approx(
        step["images_per_second"] / pipeline["images_per_second_per_core"]
    )
    provenance = found["provenance"]
    assert provenance["device"]["platform"] == "cpu"
    assert provenance["device"]["count"] == 1
    assert provenance["host"]["cores"] >= 1
    assert {"jax", "git_revision", "python"} <= set(provenance["versions"])
    assert found["config"]["batch_size"] == 2
    for part in (
        "1 x cpu (cpu), 1 process(es)",
        "random:tiny; data: random, 171 classes",
        "batch 2, 8 proposals, 64 pixels, masks from layer 2, float32, mesh data 1",
        "compiled in ",
        "blocked, each step   p50 ",
        "pipelined ",
        "MFU: unknown peak of this device and dtype (--peak_tflops)",
        "record: image (JPEG)",
        "cores a host feed the step above",
    ):
        assert part in output


@pytest.mark.slow
def test_wrong_input_is_one_line(tmp_path):
    output = finish(start(command("--what=step,speed")), exit_code=2)
    assert output.strip().endswith("unknown ['speed']")
    assert "Traceback" not in output


@pytest.mark.slow
def test_everything_in_one_command(tmp_path):
    path = tmp_path / "numbers.json"
    options = ("--what=step,input,evaluation,precompute", "--steps=2", "--warmup=0")
    output = finish(
        start(command(*options, "--compare=torch", "--peak_tflops=1", f"--json={path}"))
    )
    found = json.loads(path.read_text())
    assert {"step", "input", "evaluation", "precompute"} < set(found)
    assert found["step"]["torch"]["loss_difference"] < 1e-6
    assert found["evaluation"]["peak_bytes_alone"]["torch"] > 2**26
    for part in (
        "MFU    ",
        "PyTorch / this ",
        "losses differ by ",
        "labels that differ ",
        "a process alone ",
        "superpixels, at most 8 proposals",
    ):
        assert part in output
