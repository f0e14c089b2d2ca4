"""What the documents tell people to type is taken by the commands, and to paste is Python.

Jobs are not begun: a command of ours runs until its flags, its settings and what they mean together
are checked, in a fork of one process. Python is compared with the signatures of what it calls, and
with the attributes of what these return, by ty.
"""

import ast
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from markdown_it import MarkdownIt

from launch import gke, slurm, tpu
from launch.command_line import check_training_arguments, split_arguments
from launch.commands import Request, Target
from maft_jax.config import Config
from maft_jax.config.fields import field_names
from tests.snippets import PAGES, REPOSITORY, Command, blocks, commands

LAUNCHERS = {"launch.tpu": tpu, "launch.gke": gke, "launch.slurm": slurm}

OF_THE_READER = {"images", "masks", "scores", "example_id", "paths", "source", "model", "truth"}
OF_THE_READER |= {"predictor", "sam", "SamAutomaticMaskGenerator"}
"""Names in Python that the text around a snippet explains."""

NOT_INSTALLED = {"cv2", "fiftyone"}

NO_SETTINGS = {"NAME", "json", "sections.GENERATORS", "from_config_dict"}
"""Files, and names in Python."""

FLAGS_OF_OTHERS = {"help", "check", "convert-to-rle", "format", "gil", "local-dir", "location"}
FLAGS_OF_OTHERS |= {"logdir", "recursive", "environment_type", "job_endpoint", "runner"}
FLAGS_OF_OTHERS |= {"begin-until"}
"""Of other people's programs, absl's, and pytest's of tests/conftest.py."""

ABRIDGED = {
    "maft_jax.main": (
        "--config=configs/folder.py",
        "--workdir=run",
        "--config.data.root=photos",
        "--config.model.pretrained=ViT-B-16.pt",
    ),
    "maft_jax.cli.precompute_proposals": (
        "--config=configs/folder.py",
        "--config.data.root=photos",
    ),
    "maft_jax.cli.plan": ("--topology=v5e:4x4",),
    "launch.tpu": ("--name=maft", "--zone=us-west4-a", "--accelerator_type=v5litepod-16"),
}
"""What goes for "..." in a command, as far as it is not given."""

_FORKS = """
import argparse, json, os, runpy, sys, tempfile
import absl.app, ml_collections.config_flags, maft_jax.config

parse_args = argparse.ArgumentParser.parse_args
absl.app.run = lambda main, flags_parser: (flags_parser(sys.argv), sys.exit(0))
argparse.ArgumentParser.parse_args = lambda *given: (parse_args(*given), sys.exit(0))
refused = []
for module, arguments in json.load(sys.stdin):
    errors = tempfile.TemporaryFile("w+")
    if not (child := os.fork()):
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    errors.seek(0)
    refused.append(errors.read() + f"exit code {code}" if code else "")
json.dump(refused, sys.stdout)
"""


def module_of(command: Command) -> str:
    """Of `python -m`; that of `maft-jax`; none of another program."""
    words = command.arguments
    if command.program == "maft-jax":
        return "maft_jax.cli.program"
    return words[1] if command.program == "python" and words[:1] == ("-m",) else ""


def filled_in(command: Command) -> list[str]:
    """Arguments, with something in the places that are left to the reader."""
    arguments = command.arguments[2 if command.program == "python" else 0 :]
    words = [re.sub(r"\$\w+", "0", word) for word in arguments]
    if command.is_abridged:
        words = [word for word in words if word[0] != "[" and not word.endswith("...")]
        given = {word.partition("=")[0] for word in words}
        added = ABRIDGED.get(module_of(command), ())
        words = [word for word in added if word.partition("=")[0] not in given] + words
    return words


def ours() -> list[tuple[Command, str, list[str]]]:
    """Commands of maft_jax with their module and arguments, those behind a launcher's -- too."""
    found = []
    for command in commands():
        module, arguments = module_of(command), filled_in(command)
        if module in LAUNCHERS:
            module, arguments = "maft_jax.main", split_arguments(arguments)[1]
        if module.split(".")[0] == "maft_jax" and arguments:
            found.append((command, module, arguments))
    return found


@pytest.fixture(scope="module")
def refused() -> dict[Command, str]:
    """What is said of each command of maft_jax that is not taken."""
    finished = subprocess.run(
        [sys.executable, "-c", _FORKS],
        input=json.dumps([entry[1:] for entry in ours()]),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0
    return dict(zip([entry[0] for entry in ours()], json.loads(finished.stdout), strict=True))


@pytest.mark.parametrize("command", [entry[0] for entry in ours()], ids=str)
def test_command_is_taken(command, refused):
    assert not refused[command]


def options_of(launcher, command: Command):
    """What a launcher's parser makes of the flags before --, and what stands behind it."""
    flags, arguments = split_arguments(filled_in(command))
    if command.is_abridged:  # behind the name of what is to be done
        flags.sort(key=lambda flag: flag.startswith("-"))
    return launcher.parser().parse_args(flags), arguments


@pytest.mark.parametrize(
    "command", [one for one in commands() if module_of(one) in LAUNCHERS], ids=str
)
def test_launcher_takes_command(command):
    module = module_of(command)
    options, arguments = options_of(LAUNCHERS[module], command)
    if arguments:
        check_training_arguments(arguments, shared="" if module == "launch.slurm" else "gs://")
    if module == "launch.tpu":
        Target(options.name, options.zone)
        if options.command == "up" and not command.is_abridged:
            Request(options.accelerator_type, options.num_slices, options.capacity)


def test_commands_of_every_kind_are_found():
    commanded = {"maft_jax.cli.predict", "maft_jax.cli.convert_weights", *LAUNCHERS, *ABRIDGED}
    assert commanded <= {module_of(command) for command in commands()}


def spans() -> list[tuple[str, str]]:
    """Pages with each piece of code within their text."""
    found = []
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            children = [child for child in token.children or () if child.type == "code_inline"]
            found += [(page.name, child.content) for child in children]
    return found


def modules() -> list[str]:
    """All that `python -m` is asked for, in blocks and within text."""
    in_text = [re.findall(r"python -m ([\w.]+\w)", text) for _, text in spans()]
    return sorted({*map(module_of, commands()), *itertools.chain(*in_text)} - {""})


@pytest.mark.parametrize("module", modules())
def test_module_exists(module):
    top, *rest = module.split(".")
    folder = pathlib.Path(importlib.util.find_spec(top).submodule_search_locations[0])
    assert folder.joinpath(*rest).with_suffix(".py").exists()


def test_extras_and_markers_exist():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    markers = {line.split(":")[0] for line in settings["tool"]["pytest"]["ini_options"]["markers"]}
    setup = ast.walk(ast.parse((REPOSITORY / "setup.py").read_text()))
    extras = next(node.value for node in setup if getattr(node, "arg", "") == "extras_require")
    known = {key.value for key in extras.keys}
    for command in commands():
        line = " ".join(command.arguments)
        if command.program == "pip":
            named = re.findall(r"(?:\.|maft_jax)\[([\w,-]+)\]", line)
            assert {extra for names in named for extra in names.split(",")} <= known, command
        if command.program == "pytest":
            assert set(re.findall(r"-m (\w+)", line)) <= markers, command
            paths = [word for word in command.arguments if word.startswith("tests/")]
            assert all((REPOSITORY / path).exists() for path in paths), command


def test_settings_in_text_exist():
    known = field_names(Config)
    for page, text in spans():
        for name in re.findall(r"(?<![\w/.])config\.(\w[\w.]*\w)", text):
            exists = any(f"{field}.".startswith(f"{name}.") for field in known)
            assert exists or name in NO_SETTINGS, f"{page}: {text}"


def test_flags_in_text_exist():
    files = [*REPOSITORY.glob("maft_jax/**/*.py"), *REPOSITORY.glob("launch/*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    known = set(re.findall(r'(?:DEFINE|define)_\w+\(\s*"(\w+)"', source))
    known |= set(re.findall(r'"--([\w-]+)"', source)) | FLAGS_OF_OTHERS
    for page, text in spans():
        for flag in re.findall(r"(?<!\S)--(\w[\w-]*)", text):
            assert {flag, flag.removeprefix("no")} & known, f"{page}: {text}"


def test_files_in_text_exist():
    for page, text in spans():
        name = re.match(r"((?:configs|docs|input_pipeline|launch|maft_jax|tests)/[\w/.]+)", text)
        assert name is None or (REPOSITORY / name[1]).exists(), f"{page}: {text}"


def test_python_calls_what_there_is(tmp_path):
    """Snippets of a page are one module, in which each stands on its own lines."""
    for page in {block.page for block in blocks() if block.is_python}:
        lines = [""] * 2000
        for block in blocks():
            if block.page == page and block.is_python:
                texts = block.text.splitlines()
                lines[block.line - 1 : block.line - 1 + len(texts)] = texts
        (tmp_path / f"{page.replace('/', '_')}.py").write_text("\n".join(lines))
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "ty", "check", "--no-progress", "--output-format=concise"),
            *("--python", sys.prefix, "--extra-search-path", REPOSITORY),
            *("--ignore=missing-union-attribute", tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert re.search("^(Found|All)", checked.stdout, flags=re.MULTILINE), checked.stderr
    wrong = [
        line
        for line in checked.stdout.splitlines()
        if (name := re.search(r"(?:Name|module) `(\w+)`", line)) is None
        or name[1] not in OF_THE_READER | NOT_INSTALLED
    ]
    assert wrong[:-1] == [], checked.stdout
