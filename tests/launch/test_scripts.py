"""Shell scripts, the Dockerfile and the SkyPilot file: parsed, and run elsewhere."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launch.fake_cloud import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted((LAUNCH / "vm").glob("*.sh"))


def bash_accepts(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def shellcheck(path: pathlib.Path) -> None:
    """Its wheel comes with the extra `test`, and puts it beside Python."""
    program = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    program = program or shutil.which("shellcheck")
    assert program, "shellcheck is missing: pip install -e '.[test]'"
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_are_scripts():
    assert [path.name for path in SCRIPTS] == ["job.sh", "setup.sh"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash_and_shellcheck_has_nothing_to_say(path):
    bash_accepts(path.read_text())
    shellcheck(path)


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (word, the rest), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_dockerfile_has_known_instructions_and_begins_with_an_image():
    words = [word for word, _ in instructions()]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT"}


def test_what_the_dockerfile_copies_is_there_and_not_ignored():
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [s for word, rest in instructions() if word == "COPY" for s in rest.split()[:-1]]
    assert set(sources) >= {"setup.py", "maft_jax", "input_pipeline", "configs"}
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert {f"!{source}", f"!{source.partition('/')[0]}"} & set(ignored), source
    assert "maft_jax/__init__.py" in sources, "the version, which setup.py reads"


def test_steps_of_the_dockerfile_are_shell_commands():
    steps = [rest for word, rest in instructions() if word == "RUN"]
    assert len(steps) == 3
    for step in steps:
        bash_accepts(step)


def test_extras_that_are_installed_on_machines_exist():
    extras = set(re.findall(r'^        "(\w+)": \[', (REPOSITORY / "setup.py").read_text(), re.M))
    assert {"tpu", "cuda", "cpu"} <= extras
    assert dict(instructions())["ARG"] == "EXTRA=tpu"


def test_container_runs_the_program():
    (entry,) = [rest for word, rest in instructions() if word == "ENTRYPOINT"]
    assert json.loads(entry) == ["python", "-m", "maft_jax.main"]


def test_skypilot_file_parses_and_its_commands_are_bash():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "envs", "setup", "run"}
    assert task["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv6e"}
    for name in ("setup", "run"):
        bash_accepts(task[name])
