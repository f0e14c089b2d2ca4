"""The launcher runs on a machine that has Python and nothing else."""

import ast
import subprocess
import sys

import pytest

from launch.tpu import COMMANDS, parser
from tests.launch.fake_cloud import REPOSITORY

SOURCES = sorted((REPOSITORY / "launch").glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_module_is_small_and_needs_the_standard_library_alone(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top == "launch", name
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


@pytest.mark.parametrize("module", ["tpu", "gke", "slurm"])
def test_help_needs_no_packages(module):
    command = [sys.executable, "-S", "-m", f"launch.{module}", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m launch.{module}" in done.stdout and "Exit codes: 0" in done.stdout


def test_every_command_of_tpu_has_help():
    for name, function in COMMANDS.items():
        assert function.__doc__
        with pytest.raises(SystemExit, match="0"):
            parser().parse_args([name, "--help"])
