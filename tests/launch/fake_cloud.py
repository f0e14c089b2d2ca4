"""A cloud for tests: `gcloud` on PATH, machines that are folders, and a training that pretends."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import time

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
QUICK = ["--poll_seconds=0.01", "--retry_seconds=0.01"]
RENTING = ["--accelerator_type=v5litepod-16", "--capacity=spot"]
TARGET = ["--name=maft", "--zone=us-west4-a"]
TRAINING = ["--config=configs/coco.py", "--workdir=gs://bucket/run", "--config.note=it's $HOME"]
FOREVER = "forever"

# What setup.sh would install: pip and uv leave a Python that plays the training of the scenario.
_PYTHON3 = """\
#!/bin/bash
if [[ "$*" == "-m uv venv "* ]]; then
    mkdir -p venv/bin && cp "$FAKE_CLOUD/training" venv/bin/python
elif [[ "$*" == "-m uv pip install "* ]]; then
    echo "${@: -1}" >>"$FAKE_CLOUD/installed"
fi
"""
_TRAINING = f"""\
#!{sys.executable} -SE
import json, os, pathlib, signal, sys, time
cloud, host = pathlib.Path(os.environ["FAKE_CLOUD"]), os.environ["FAKE_HOST"]
starts = cloud / f"starts {{os.environ['FAKE_CREATION']}} {{host}}"
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
scenario = json.loads((cloud / "scenario.json").read_text())
creations = scenario["training"]
plays = creations[min(int(os.environ["FAKE_CREATION"]), len(creations)) - 1]
play = plays[min(number, len(plays) - 1)]
play = play.get(host, play["others"]) if isinstance(play, dict) else play
record = {{
    "host": host, "argv": sys.argv[1:], "folder": os.getcwd(), "files": sorted(os.listdir()),
    "token": os.environ.get("TOKEN"), "play": play,
}}
with (cloud / "trainings.jsonl").open("a") as file:
    file.write(json.dumps(record) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(f"step 10 on {{host}}", flush=True)
while play == "{FOREVER}":
    time.sleep(0.02)
sys.exit(play)
"""


def make_checkout(folder: pathlib.Path) -> None:
    """A git checkout with the launcher and little else, so that copying it takes no time."""
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    (folder / "README.md").write_text("")
    (folder / "notes.txt").write_text("not for machines")
    (folder / ".gitignore").write_text("__pycache__/\n")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)


class FakeCloud:
    """Runs the launcher against a scenario.

    Args:
        checkout: made by make_checkout.
        states: for each creation what `describe` answers, one after another; the last repeats.
            "FAILED:why" has an error.
        training: for each creation the exit codes of successive starts, FOREVER, or a dict from
            host to one of them.
        ssh_failures: for each creation how often a worker is not reached.
        create_errors: for each creation the error of gcloud, if any.
        deleting: the error of gcloud, "hangs", or "is said to be done", which it is not.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        checkout: pathlib.Path,
        *,
        states=(("ACTIVE",),),
        training=((0,),),
        ssh_failures=({},),
        create_errors=("",),
        deleting="",
        num_workers=2,
        nodes=("maft",),
    ):
        self.folder = folder
        for name in ("bin", "vm_bin", "vm", "here"):
            (folder / name).mkdir()
        scenario = {
            "states": states,
            "training": training,
            "ssh_failures": ssh_failures,
            "create_errors": create_errors,
            "deleting": deleting,
            "num_workers": num_workers,
            "nodes": nodes,
        }
        (folder / "scenario.json").write_text(json.dumps(scenario))
        (folder / "memory.json").write_text('{"creations": 0, "answers": 0, "exists": false}')
        gcloud = pathlib.Path(__file__).with_name("fake_gcloud.py").read_text()
        self._program("bin/gcloud", f"#!{sys.executable} -SE\n{gcloud}")
        self._program("vm_bin/python3", _PYTHON3)
        self._program("vm_bin/hostname", '#!/bin/bash\necho "$FAKE_HOST"\n')
        self._program("training", textwrap.dedent(_TRAINING))
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_CLOUD": str(folder),
            "PYTHONPATH": str(checkout),
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        """python -m launch.tpu ARGUMENTS, in a folder of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "launch.tpu", *arguments],
            cwd=self.folder / "here",
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, command: str, *flags: str, arguments=()) -> subprocess.CompletedProcess:
        """Runs a command to its end, with TARGET and no waiting."""
        tail = ["--", *arguments] if arguments else []
        process = self.start(command, *TARGET, *QUICK, *flags, *tail)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def up(self, *flags: str) -> subprocess.CompletedProcess:
        """`up` of TRAINING on RENTING."""
        return self.launch("up", *RENTING, *flags, arguments=TRAINING)

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every gcloud command, in order."""
        return [call["argv"] for call in self._lines("calls.jsonl")]

    @property
    def inputs(self) -> list[str]:
        """Their standard inputs."""
        return [call["stdin"] for call in self._lines("calls.jsonl")]

    @property
    def trainings(self) -> list[dict]:
        """Every start of the training on every machine."""
        return self._lines("trainings.jsonl")

    @property
    def life(self) -> list[str]:
        """Creations and deletions, in order."""
        verbs = [
            argv[argv.index("queued-resources") + 1]
            for argv in self.calls
            if "queued-resources" in argv
        ]
        return [verb for verb in verbs if verb != "describe"]

    @property
    def exists(self) -> bool:
        """Whether something is rented now."""
        return json.loads((self.folder / "memory.json").read_text())["exists"]

    def wait_for(self, name: str, lines: int) -> None:
        """Until a file of the cloud has so many lines."""
        deadline = time.monotonic() + 60
        while len(self._lines(name)) < lines:
            assert time.monotonic() < deadline, f"{name} has {self._lines(name)}"
            time.sleep(0.02)

    def _lines(self, name: str) -> list[dict]:
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
