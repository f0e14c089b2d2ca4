"""A page about a machine: what it has, what cannot work, nothing secret, and always an end."""

import http.server
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import venv

import pytest

from maft_jax.doctor import devices, examination, hub, machine, packages, page
from maft_jax.doctor.bounded import answer_of, within
from tests.runs import REPOSITORY

GB = 10**9


def command(*arguments, python=sys.executable, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, "-m", "maft_jax.cli.doctor", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_reader_that_leaves_is_no_failure():
    process = subprocess.Popen(
        [sys.executable, "-m", "maft_jax.cli.doctor", "--json", "--offline"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(100) in (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["page", "json"])
def test_a_full_disk_is_told_without_a_traceback(form):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "maft_jax.cli.doctor", "--offline", *form],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert done.returncode == 1
    assert "standard output: [Errno 28]" in done.stderr and "Traceback" not in done.stderr


def test_page_of_this_machine_names_no_one(tmp_path):
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    secret = {
        "HOME": str(home),
        "HF_TOKEN": "hf_secret",
        "WANDB_API_KEY": "secret",
        "USER": "alice",
    }
    done = command("--offline", str(home / "photos"), LOGNAME="alice", **secret)
    assert done.returncode == 0 and done.stderr == ""
    assert "secret" not in done.stdout and "alice" not in done.stdout
    assert len(done.stdout.splitlines()) < 60 and max(map(len, done.stdout.splitlines())) <= 100
    for expected in (
        f"jax {importlib.metadata.version('jax')} (",
        "devices of jax: 1 x cpu\n",
        "JAX_PLATFORMS=cpu\n",
        "hub: not asked\n",
        "data 1: ~/photos: ",
        "nothing that cannot work\n",
        "* jax runs on the CPU: ",
    ):
        assert expected in done.stdout, done.stdout


def test_installation_without_any_package_is_told_as_such(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    done = command("--json", "--offline", python=str(tmp_path / "venv/bin/python"))
    found = json.loads(done.stdout)
    assert done.returncode == 1 and done.stderr == ""
    assert found["cannot_work"] == [
        "jax finds no device: ModuleNotFoundError: No module named 'jax'"
    ]
    assert "what is required is not known: No module named 'packaging'" in found["metadata"]
    assert found["system"]["cores"] >= 1


def test_no_command_line_of_it_ends_without_an_answer():
    done = command("--jsno")
    assert done.returncode == 2 and "unrecognized arguments: --jsno" in done.stderr
    done = command("--help")
    assert done.returncode == 0 and "    python -m maft_jax.cli.doctor --json" in done.stdout


def ended(process: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
        return state.split()[0] == "Z"
    except OSError:
        return True


def test_driver_that_hangs_is_ended_with_what_it_started(tmp_path):
    file = tmp_path / "processes"
    program = f"""
import os, pathlib, time
other = os.fork()
if other:
    pathlib.Path({str(file)!r}).write_text(f"{{os.getpid()}} {{other}}")
time.sleep(60)
"""
    assert devices.jax_devices(2.0, program)["problem"] == "no answer in 2 s"
    processes = [int(number) for number in file.read_text().split()]
    give_up = time.monotonic() + 5
    while not all(map(ended, processes)):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("raise RuntimeError('no driver')", "RuntimeError: no driver"),
        ("import os; os.abort()", "it ended with code -6"),
    ],
)
def test_driver_that_crashes_is_told(program, problem):
    assert devices.jax_devices(30.0, program) == {
        "devices": [],
        "said": [problem] if "Error" in problem else [],
        "problem": problem,
    }


def test_modules_of_the_working_folder_are_not_taken_for_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jax.py").write_text("raise RuntimeError('somebody else')")
    (tmp_path / "json.py").write_text("raise RuntimeError('somebody else')")
    program = "import json, importlib.util as u; print(json.dumps([u.find_spec('jax').origin]))"
    (found,) = devices.jax_devices(30.0, program)["devices"]
    assert found.endswith("jax/__init__.py")


def test_call_that_hangs_is_left_behind():
    assert within(0.05, lambda: time.sleep(1), "late") == "late"
    assert within(5.0, lambda: "here", "late") == "here"
    assert answer_of([sys.executable, "-c", "print(1)"], 30.0) == (0, "1\n", "")


def test_container_limits_are_those_of_its_group_and_of_groups_above(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/container\n")
    (groups / "pod/container").mkdir(parents=True)
    (groups / "pod/container/memory.max").write_text("max\n")
    (groups / "pod/memory.max").write_text(f"{8 * GB}\n")
    (groups / "pod/container/cpu.max").write_text("150000 100000\n")
    (groups / "cpu.max").write_text("max 100000\n")
    found = machine.system(str(tmp_path))
    assert (found["memory_of_container"], found["cores_of_container"]) == (8 * GB, 1.5)
    assert found["shared_memory"] is None
    found = machine.system(str(tmp_path / "elsewhere"))
    assert (found["memory_of_container"], found["cores_of_container"]) == (None, None)


def test_cards_are_found_by_the_driver_and_by_its_files(tmp_path, monkeypatch):
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 24\nGPU UUID: \t GPU-1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_cards(str(tmp_path)) == ["NVIDIA H200"]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 550.54'\n")
    program.chmod(0o755)
    assert machine.nvidia_cards(str(tmp_path)) == ["Tesla T4, 15360 MiB, 550.54"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_cards("/nowhere") == []


def test_folder_that_is_not_there_yet_is_where_it_would_be(tmp_path):
    found = machine.folder(str(tmp_path / "a/b"))
    assert found["writable"] and found["free"] > 0 and not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    found = machine.folder(str(tmp_path / "file"))
    assert not found["writable"] and found["problem"] == "Not a directory"


def package(folder, name, version, *lines):
    """Metadata of an installed package."""
    folder = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    )


def test_packages_are_compared_with_what_the_metadata_ask_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "OWN", "made-up-whole")
    wanted = [
        *("made-up_part[fast]>=2", "made-up-new<3", "made-up-absent"),
        *("made-up-windows; sys_platform == 'win32'", "made-up-part; extra == 'one'"),
        *("made-up-part[fast]; extra == 'two'", "made-up-absent>1; extra == 'three'"),
    ]
    extras = [f"Provides-Extra: {name}" for name in ("one", "two", "three", "empty")]
    lines = [f"Requires-Dist: {text}" for text in wanted]
    package(tmp_path, "made-up-whole", "1.0", *extras, *lines)
    fast = ["Provides-Extra: fast", "Requires-Dist: made-up-fast==1.*; extra == 'fast'"]
    package(tmp_path, "made-up-part", "2.1rc1", *fast)
    package(tmp_path, "made-up-new", "3.1")
    found = {one["name"]: (one["installed"], one["fits"]) for one in packages.required_packages()}
    assert found == {
        "made-up_part": ("2.1rc1", False),
        "made-up-new": ("3.1", False),
        "made-up-absent": (None, False),
    }
    lacking = {"one": [], "two": ["made-up-fast==1.*"], "three": ["made-up-absent>1"]}
    assert packages.extras() == lacking
    package(tmp_path, "made-up-fast", "1.5")
    assert packages.extras()["two"] == [] and packages.required_packages()[0]["fits"]


class _Refuses(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(401)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def port():
    with http.server.HTTPServer(("127.0.0.1", 0), _Refuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_hub_that_answers_is_reached_whatever_it_says(port, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:token@127.0.0.1:{port}")
    assert hub.hub_state() == f"127.0.0.1:{port}: reached (it answers 401)"


@pytest.mark.parametrize(("said", "forbidden"), [("1", True), ("yes", True), ("0", False)])
def test_the_hub_is_not_asked_where_its_client_would_not(monkeypatch, said, forbidden):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", said)
    assert hub.hub_is_forbidden() == forbidden
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub.hub_is_forbidden()


def test_hub_that_does_not_answer_is_waited_for_in_vain(monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        assert hub.hub_state() in (
            f"{address}: no answer in 0 s",
            f"{address}: not reached (timed out)",
        )
    assert "refused" in hub.hub_state()
    monkeypatch.setenv("HF_ENDPOINT", "http://me:token@nowhere:port")
    assert hub.hub_state() == "nowhere:port: not reached (no address that can be asked)"


def facts(**changes):
    device = {"kind": "cpu", "platform": "cpu", "memory": None, "compute_capability": None}
    folder = {"path": ".", "free": 50 * GB, "writable": True, "problem": None}
    system = {"cores": 8, "cores_of_container": None, "memory": 64 * GB, "python": "3.11.7"}
    return {
        "system": system | {"memory_of_container": None},
        "environment": {},
        "cards": [],
        "tpu_attached": False,
        "jax": {"devices": [device | changes.pop("device", {})], "said": [], "problem": None},
        "folders": {"compiled programs": folder | changes.pop("folder", {})},
        "packages": [],
        "extras": {"cuda": []},
        "metadata": None,
    } | changes


def test_nothing_is_said_of_a_good_machine():
    found = facts(device={"kind": "H200", "platform": "gpu", "compute_capability": "9.0"})
    assert not examination._cannot_work(found)
    assert not [*examination._about_devices(found), *examination._about_the_rest(found)]


GPU = {"kind": "T4", "platform": "gpu", "compute_capability": "7.5"}
SAID = [
    (
        facts(cards=["T4"], extras={"cuda": ["jax-cuda12-plugin"]}),
        r"a GPU is here and jax does not use it: pip install 'maft_jax\[cuda\]'",
    ),
    (
        facts(cards=["T4"], environment={"JAX_PLATFORMS": "cpu"}),
        "jax does not use it: see its driver; JAX_PLATFORMS=cpu",
    ),
    (facts(device=GPU), "T4: older than Ampere"),
    (facts(tpu_attached=True, extras={"tpu": ["libtpu"]}), r"a TPU is here .*maft_jax\[tpu\]"),
    (facts(folder={"free": GB}), r"compiled programs, \.: 1\.0 GB free"),
    (facts(folder={"problem": "Read-only file system"}), "not writable .Read-only file system"),
    (facts(folders={}), "JAX_COMPILATION_CACHE_DIR is not set"),
    (
        facts(packages=[{"name": "jax", "wanted": "<1", "installed": "1.0", "fits": False}]),
        "jax 1.0: known to work is <1",
    ),
]


@pytest.mark.parametrize(("found", "pattern"), SAID)
def test_what_is_worth_knowing_is_said(found, pattern):
    said = [*examination._about_devices(found), *examination._about_the_rest(found)]
    assert len([one for one in said if not one.startswith("jax runs on the CPU")]) == 1
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(said)
    assert not examination._cannot_work(found)


def test_missing_package_cannot_work():
    missing = {"name": "flax", "wanted": ">=0.12", "installed": None, "fits": False}
    (said,) = examination._cannot_work(facts(packages=[missing]))
    assert said == "flax is not installed; pip install 'maft_jax[cpu]' again"


def test_names_are_left_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    found = {"a": ["/home/alice/x", "/home/alice-2/y"], "b": "--dump=/scratch/alice/z", "c": 3}
    expected = {"a": ["~/x", "~/y"], "b": "--dump=/scratch/USER/z", "c": 3}
    assert page.without_names(found) == expected
