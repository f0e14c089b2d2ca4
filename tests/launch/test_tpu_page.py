"""The commands of docs/tpu.md are commands that the launcher takes."""

import re
import shlex

import pytest

from launch import gke, slurm, tpu
from launch.command_line import check_training_arguments, split_arguments
from launch.commands import Request, Target
from tests.launch.fake_cloud import REPOSITORY

PARSERS = {"tpu": tpu.parser, "gke": gke.parser, "slurm": slurm.parser}


def commands_of_page() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (REPOSITORY / "docs" / "tpu.md").read_text())
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python -m launch.")]


def test_the_page_has_commands_of_every_kind():
    assert {command[0] for command in commands_of_page()} == {f"launch.{n}" for n in PARSERS}


@pytest.mark.parametrize("command", commands_of_page(), ids=" ".join)
def test_command_of_the_page_is_taken(command):
    module = command[0].removeprefix("launch.")
    flags, arguments = split_arguments(command[1:])
    options = PARSERS[module]().parse_args(flags)
    if arguments:
        check_training_arguments(arguments, shared="" if module == "slurm" else "gs://")
    if module == "tpu":
        Target(options.name, options.zone)
        if options.command == "up":
            Request(options.accelerator_type, options.num_slices, options.capacity)
