"""The command, with the TPU compiler, on the tiny CLIP, in processes of its own."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.runs import REPOSITORY, SETTINGS

TRAINABLE = 266_496
"""Parameters of random:tiny that the default rules train."""
STATE_BYTES = 3 * 4 * TRAINABLE
RECIPE = ("--config=configs/coco.py", "--topology=v5e:2x2", "--batch_per_device=32")
WITHOUT_SEARCH = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"}
"""The compiler does not look for fast loops, which takes four fifths of its time."""


FAKE = """
import sys
from maft_jax.cli import plan as command
command.prepare_environment()
command.prepare_environment = lambda: None
from maft_jax.planning import plan
from tests.planning.plans import make_costs, make_plan
def fake(config, topology, batch_per_device=None):
    images = batch_per_device or 20
    if images == {interrupted_at}:
        raise KeyboardInterrupt
    gib = 0.1 if config.model.remat else 1.0
    costs = make_costs(3 + gib * images <= 15.75, gib, images)
    return make_plan(topology.name, costs, images)
plan.make_plan = fake
command.run()
"""
"""The command on a step of 3 GiB and 1 GiB per image, 0.1 with remat, without compiling."""


def run(
    *arguments: str,
    exit_code: int = 0,
    program=("-m", "maft_jax.cli.plan"),
    stdin="",
    **more_environment,
):
    """Runs the command and returns what it printed to stdout and stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    finished = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)} | more_environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert finished.returncode == exit_code, finished.stdout + finished.stderr
    return finished.stdout, finished.stderr


def tiny(topology: str, **changes) -> list[str]:
    settings = {name: value for name, value in SETTINGS.items() if name != "batch_size"}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return [
        "--config=configs/folder.py",
        f"--topology={topology}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def planned(folder, *arguments: str) -> dict:
    """The only plan that the command wrote, of a compiler that does not search."""
    run(*arguments, f"--json={folder / 'plan.json'}", **WITHOUT_SEARCH)
    (plan,) = json.loads((folder / "plan.json").read_text())
    return plan


@pytest.mark.slow
def test_step_of_a_data_parallel_run_on_tpus(tmp_path):
    """Compiled as users' are; the others of this file without the search for fast loops."""
    picture, file = tmp_path / "roofline.png", tmp_path / "plan.json"
    printed, log = run(
        *tiny("v5e:2x2"),
        f"--json={file}",
        f"--roofline={picture}",
    )
    (plan,) = json.loads(file.read_text())
    costs = plan["costs"]
    assert costs["fits"] and costs["trainable_parameters"] == TRAINABLE
    assert costs["donated_bytes"] == pytest.approx(STATE_BYTES, rel=0.02)
    assert costs["hbm"]["trainable parameters"] == 4 * TRAINABLE
    assert costs["hbm"]["optimizer moments"] == pytest.approx(8 * TRAINABLE, abs=100)
    assert costs["flops"] == pytest.approx(plan["image_flops"] * plan["batch_per_device"], rel=0.5)
    assert {one["kind"] for one in costs["traffic"]} == {"all-reduce"}
    assert {one["group_size"] for one in costs["traffic"]} == {4}
    scalars = sum(one["elements"] for one in costs["traffic"]) - TRAINABLE
    assert 0 <= scalars < 200  # losses, counts, the norm, and whether examples are finite
    assert "batch 16" in printed and "fits: " in printed and "TPU v5e" in printed
    assert "150 classes, since" in printed
    assert "compiling for v5e:2x2" in log and "TPU_ACCELERATOR_TYPE" not in log
    with Image.open(picture) as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_official_recipe_at_32_images_per_chip(tmp_path):
    """The table of choices in docs/performance.md; the plain prototype moved 11.6 GB per image."""
    costs = planned(tmp_path, *RECIPE)["costs"]
    assert costs["fits"] and costs["trainable_parameters"] == 28_386_816
    assert costs["hbm_bytes"] / 32 == pytest.approx(2.98e9, rel=0.02)
    assert costs["flops"] / 32 == pytest.approx(0.748e12, rel=0.01)
    assert sum(costs["hbm"].values()) / 2**30 == pytest.approx(11.90, rel=0.02)
    assert {one["kind"] for one in costs["traffic"]} == {"all-reduce"}
    scalars = sum(one["elements"] for one in costs["traffic"]) - 28_386_816
    assert 0 <= scalars < 200


@pytest.mark.slow
def test_blocks_one_after_the_other_move_and_keep_less(tmp_path):
    unrolled = [*RECIPE, "--config.model.scan_blocks=False"]
    costs = planned(tmp_path, *unrolled)["costs"]
    assert costs["hbm_bytes"] / 32 == pytest.approx(2.01e9, rel=0.02)
    assert costs["flops"] / 32 == pytest.approx(0.749e12, rel=0.01)
    assert sum(costs["hbm"].values()) / 2**30 == pytest.approx(7.6, rel=0.02)


@pytest.mark.slow
def test_two_slices_send_what_each_chip_has_reduced(tmp_path):
    traffic = planned(tmp_path, *tiny("2xv5e:2x2"))["costs"]["traffic"]
    elements = dict.fromkeys([one["kind"] for one in traffic], 0)
    for one in traffic:
        elements[one["kind"]] += one["elements"]
    # Each gradient once within a slice, padded to tiles, and a part or the whole to the other.
    reduced = elements["all-reduce"] + elements["reduce-scatter"]
    assert reduced == pytest.approx(TRAINABLE, rel=0.01)
    assert TRAINABLE / 4 < elements["send between slices"] < TRAINABLE


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_divides_their_memory(tmp_path):
    costs = planned(tmp_path, *tiny("v5e:4x4", mesh__fsdp=4))["costs"]
    assert costs["hbm"]["trainable parameters"] < 4 * TRAINABLE / 3
    groups = {one["kind"]: one["group_size"] for one in costs["traffic"]}
    assert (groups["all-gather"], groups["reduce-scatter"]) == (4, 4)


@pytest.mark.slow
def test_accumulation_costs_the_arithmetic_of_the_same_batch(tmp_path):
    command = [*tiny("v5e:2x2"), "--batch_per_device=4"]
    whole = planned(tmp_path, *command)["costs"]
    parts = planned(tmp_path, *command, "--config.optimizer.accumulation_steps=2")["costs"]
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.05)


@pytest.mark.slow
def test_devices_of_ironwood_share_a_chip(tmp_path):
    plan = planned(tmp_path, *tiny("ironwood:2x2x1"))
    assert (plan["topology"], plan["mesh"]["data"]) == ("tpu7x:2x2x1", 8)
    assert {one["chips"] for one in plan["costs"]["traffic"]} == {4}
    assert plan["bounds"]["device_hours"] == 2 * plan["bounds"]["chip_hours"]


REFUSED = [
    (["--config=configs/coco.py"], "--topology=v5e:4x4"),
    (["--config=configs/coco.py", "--topology=v9:2x2"], "with a chip of"),
    (["--config=configs/eval_only.py", "--topology=v5e:2x2"], "there is no train step"),
    (["--config=configs/folder.py", "--topology=v5e:2x2"], "config.model.pretrained"),
    (
        ["--config=configs/coco.py", "--topology=v5e:2x2", "--config.model.pretrained=m.pt"],
        "ViT-B-16.pt",
    ),
    (
        ["--config=configs/coco.py", "--topology=v5e:2x2", "--config.mesh.fsdp=3"],
        "does not make 4, the number of devices",
    ),
    (
        ["--config=configs/coco.py", "--topology=2xv5e:2x2", "--config.mesh.fsdp=8"],
        "data=1 must be a multiple of the 2 slices",
    ),
    (
        ["--config=configs/coco.py", "--topology=v5e:2x2", "--json=nowhere/plan.json"],
        "no such folder",
    ),
]
EACH_IN_A_FORK = """
import json, os, pathlib, sys
from maft_jax.cli import plan as command
folder = pathlib.Path(sys.argv[1])
for number, arguments in enumerate(json.load(sys.stdin)):
    if not (child := os.fork()):
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv[1:] = arguments
        command.run()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / f"{number}.code").write_text(str(code))
"""
"""Runs command lines one after the other, of which none imports the libraries again."""


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    program = ("-c", EACH_IN_A_FORK, str(folder))
    run(program=program, stdin=json.dumps([arguments for arguments, _ in REFUSED]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[told for _, told in REFUSED])
def test_wrong_input_is_refused_in_one_message(refused, number):
    printed, log, code = (
        (refused / f"{number}.{part}").read_text() for part in ("out", "err", "code")
    )
    assert REFUSED[number][1] in log and "Traceback" not in log and not printed
    assert code == "2"


def test_help_lists_flags_and_settings():
    printed, _ = run("--help")
    for option in ("--topology", "--batch_per_device", "--config.mesh.fsdp"):
        assert option in printed


def run_fake(*arguments: str, exit_code: int, interrupted_at: int = 0) -> tuple[str, str]:
    program = ("-c", FAKE.format(interrupted_at=interrupted_at))
    return run(*tiny("v5e:2x2"), *arguments, exit_code=exit_code, program=program)


@pytest.mark.slow
def test_a_sweep_prints_its_table_and_the_largest(tmp_path):
    file = tmp_path / "plans.json"
    printed, _ = run_fake("--sweep", f"--json={file}", exit_code=0)
    table = printed.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["1", "4", "12", "13"]
    assert "does not fit" in table[-1] and "largest: 12 images per device" in printed
    assert [plan["batch_per_device"] for plan in json.loads(file.read_text())] == [1, 4, 12, 13]


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_what_is_finished(tmp_path):
    file = tmp_path / "plans.json"
    printed, _ = run_fake("--sweep", f"--json={file}", exit_code=130, interrupted_at=12)
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["1", "4"]
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.slow
def test_a_step_that_does_not_fit_ends_with_what_would(tmp_path):
    file = tmp_path / "plans.json"
    printed, _ = run_fake(f"--json={file}", exit_code=1)
    assert "does not fit: at least 23.00 of 15.75 GiB" in printed
    suggested = printed.partition("instead of it fits")[2].splitlines()[1:]
    assert [line.split()[0] for line in suggested] == [
        "--config.model.remat=True",
        "--batch_per_device=12",
    ]
    assert [plan["costs"]["fits"] for plan in json.loads(file.read_text())] == [False, True, True]
    printed, _ = run_fake("--noalternatives", exit_code=1)
    assert "instead" not in printed


def test_meshes_of_machines_that_are_not_there():
    """fsdp may split an axis of the torus; data alone goes from one slice to the next."""
    script = """
from maft_jax.planning.topology import parse_topology, prepare_environment
prepare_environment()
from maft_jax.runtime import sharding
from maft_jax.config.sections import MeshConfig
def mesh_of(name, **sizes):
    return sharding.make_mesh(MeshConfig(**sizes), parse_topology(name).devices())
for name in ("v6e:16x16", "v4:8x8x8", "v5p:4x4x8", "tpu7x:8x8x8"):
    for size in (2, 4, 8):
        assert mesh_of(name, fsdp=size).shape["fsdp"] == size
mesh = mesh_of("2xv6e:2x4", fsdp=2, model=2)
assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "model": 2}
for index, row in enumerate(mesh.devices):
    assert {device.slice_index for device in row.flat} == {index // 2}
"""
    run(program=("-c", script))
