"""`maft-jax NAME` is `python -m` of a module: all of them by name, no slower, called as it was."""

import ast
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import yaml

import maft_jax
from maft_jax.runtime import command_names
from maft_jax.runtime.command_names import COMMANDS, as_called
from tests.command_lines import answers
from tests.runs import REPOSITORY

WAITS = """
import sys
from maft_jax.runtime import stop_requests
from maft_jax.runtime.console import run_and_report
print("ready", sys.modules["__main__"].__spec__.name, sys.argv[1:], flush=True)
stop_requests.leave(run_and_report(lambda: stop_requests.wait(60)))
"""
SCRIPT = """
from maft_jax.cli import program
from maft_jax.runtime import stop_requests
assert stop_requests.is_watching(), "as soon as with python -m"
program.COMMANDS["waits"] = program.COMMANDS["evaluate"]._replace(module="waits")
program.main()
"""


def runs_as_a_command(path: pathlib.Path) -> bool:
    tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return "__name__ == '__main__'" in map(ast.unparse, tests)


def test_every_command_has_a_name():
    files = [REPOSITORY / "maft_jax/main.py", *(REPOSITORY / "maft_jax/cli").glob("*.py")]
    modules = {
        path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
        for path in files
        if runs_as_a_command(path)
    }
    assert modules - {"maft_jax.cli.program"} == {one.module for one in COMMANDS.values()}
    assert all(0 < len(one.summary) < 70 for one in COMMANDS.values())


def test_documents_name_commands_that_there_are():
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"maft-jax ([a-z][\w-]*)", page.read_text(encoding="utf-8"))
    }
    assert {"train", "doctor"} <= named <= set(COMMANDS)


ANSWERS = {
    "help": (["--help"], 0, r"stdout: .*\n  train +fine-tune CLIP.*\n  doctor  .*bug report"),
    "nothing": ([], 2, r"stderr: .*\n  train +fine-tune CLIP"),
    "version": (["--version"], 0, rf"stdout: maft-jax {re.escape(maft_jax.__version__)}\nstderr"),
    "misspelt": (["evalute"], 2, r"stderr: \nevalute: no such command; did you mean evaluate\?"),
    "module": (["convert_weights"], 2, r"did you mean convert\?"),
    "unknown": (["frobnicate"], 2, r"frobnicate: no such command; maft-jax --help lists them"),
    "help of one": (["segment", "--help"], 0, r"stdout: .*\n    maft-jax segment --weights"),
    "help of training": (["train", "--help"], 0, r"\n    maft-jax evaluate --workdir=runs/eval"),
    "its own configuration": (
        ["evaluate", "--workdir=x", "--config.checkpoint=y"],
        2,
        r"stderr: \nconfig.evaluation.roots: no data set",
    ),
    "another configuration": (
        ["evaluate", "--workdir=x", "--config=configs/nope.py"],
        2,
        r"No such file.*configs/nope.py",
    ),
}


@pytest.fixture(scope="module")
def answered():
    commands = {name: arguments for name, (arguments, *_) in ANSWERS.items()}
    return answers("maft_jax.cli.program", commands)


@pytest.mark.parametrize("name", ANSWERS)
def test_program_answers(name, answered):
    _, code, pattern = ANSWERS[name]
    answer = answered[name]
    assert answer.returncode == code, answer.stderr
    said = f"stdout: {answer.stdout}stderr: {answer.stderr}"
    assert re.search(pattern, said, re.DOTALL), said
    assert "Traceback" not in said


def test_nothing_of_a_command_is_loaded_before_it_runs():
    program = (
        "import sys; before = set(sys.modules); import maft_jax.cli.program\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('maft_jax.cli')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    loaded, ours = map(ast.literal_eval, done.stdout.splitlines())
    assert set(loaded) <= sys.stdlib_module_names | {"maft_jax"}
    assert ours == ["maft_jax.cli", "maft_jax.cli.program"]


def test_stopping_it_is_stopping_the_command(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/eval_only.py").write_text("")  # nobody named it
    (tmp_path / "maft-jax").write_text(SCRIPT)  # as pip writes it, but for the command
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "maft-jax"), "waits", "--flag"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The module's name is what worker processes load.
    expected = f"ready waits ['--config={REPOSITORY}/maft_jax/configs/eval_only.py', '--flag']\n"
    assert process.stdout.readline() == expected
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped by SIGINT" in stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run python -m maft_jax.cli.precompute_proposals first", "run maft-jax precompute first"),
        ("python -m maft_jax.main --config=configs/eval_only.py --x", "maft-jax evaluate --x"),
        ("python -m maft_jax.main --config=my.py", "maft-jax train --config=my.py"),
        ("python -m maft_jax.cli.benchmark_input.", "maft-jax benchmark-input."),
        ("python -m maft_jax.cli.predict", "maft-jax segment"),
        ("python -m launch.tpu up", "python -m launch.tpu up"),
        ("python -m maft_jax.cli.nothing", "python -m maft_jax.cli.nothing"),
    ],
)
def test_messages_call_commands_as_this_one_was_called(text, expected, monkeypatch):
    assert as_called(text) == text
    monkeypatch.setattr(command_names, "_called", "segment")
    assert as_called(text) == expected


def test_there_is_one_version():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert str(cited["version"]) == maft_jax.__version__
    assert maft_jax.__version__ not in (REPOSITORY / "setup.py").read_text()
