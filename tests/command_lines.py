"""How commands answer what is wrong with their command lines: many in one Python process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.runs import REPOSITORY

_FORKS = """
import io, json, os, runpy, sys, tempfile
import absl.app, ml_collections.config_flags  # before any command, since all of them load these

module, commands = json.load(sys.stdin)
outcomes = []
for arguments in commands:
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        os.dup2(files[0].fileno(), 1)
        os.dup2(files[1].fileno(), 2)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes.append([code, *(file.seek(0) or file.read() for file in files)])
json.dump(outcomes, sys.stdout)
"""
"""Python, absl and ml_collections start once; each command runs in a fork of that process."""

PREDICT_IN_TURN = """
import json, sys
from absl.testing import flagsaver
from maft_jax.cli import command_line, predict
for arguments in json.loads(sys.argv[1]):
    saved = flagsaver.save_flag_values()
    try:
        code = predict.main(command_line.parse(["predict", *arguments], predict.check_arguments))
    except SystemExit as stop:
        code = stop.code
    flagsaver.restore_flag_values(saved)
    print(f"code {code}", file=sys.stderr, flush=True)
"""
"""Given lists of arguments as JSON: each is predicted with, and its exit code printed."""


def answers(
    module: str, commands: Mapping[str, Sequence[str]]
) -> dict[str, subprocess.CompletedProcess]:
    """Exit code, stdout and stderr of `python -m module ARGUMENTS` for each command, by its name.

    For commands that end before they load JAX, whose threads would not live on in a fork.
    """
    finished = subprocess.run(
        [sys.executable, "-c", _FORKS],
        input=json.dumps([module, [list(arguments) for arguments in commands.values()]]),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0
    return {
        name: subprocess.CompletedProcess([module, *commands[name]], *outcome)
        for name, outcome in zip(commands, json.loads(finished.stdout), strict=True)
    }
