"""The batch script runs for real, with srun, scontrol and the training as fakes on PATH."""

import json
import os
import subprocess
import sys

import pytest

from tests.launch.fake_cloud import REPOSITORY
from tests.launch.test_scripts import shellcheck

TRAINING = ["--config=configs/coco.py", "--workdir=/shared/it's a run"]

# Starts the command once per task with what SLURM tells a task, and returns the worst exit code.
SRUN = """\
#!/usr/bin/env bash
echo "$*" >>"$CALLS/srun"
while [[ $1 == --* ]]; do shift; done
worst=0
for ((i = 0; i < ${TASKS:-2}; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || { code=$?; ((code > worst)) && worst=$code; }
done
exit "$worst"
"""
PYTHON = f"""\
#!{sys.executable} -SE
import json, os, signal, sys, time
task = int(os.environ["SLURM_PROCID"])
with open(os.environ["CALLS"] + "/trainings", "a") as file:
    record = {{"argv": sys.argv[1:], "task": task, "token": os.environ.get("TOKEN")}}
    record["devices"] = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    file.write(json.dumps(record) + "\\n")
code = json.loads(os.environ["CODES"])[task]
if code == "TERM":  # SLURM tells all processes of a task; training saves, and leaves with 143
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.3)
    with open(os.environ["CALLS"] + "/scontrol", "a") as file:
        file.write("saved\\n")
    code = 143
sys.exit(code)
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder with the fakes; returns a function that submits, and one that runs the script."""
    for name, text in {
        "bin/srun": SRUN,
        "bin/scontrol": '#!/usr/bin/env bash\necho "$*" >>"$CALLS/scontrol"\n',
        "bin/sbatch": '#!/usr/bin/env bash\ncat >"$CALLS/script"; echo "Submitted batch job 7"\n',
        "venv/python": PYTHON,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "calls").mkdir()
    return Cluster(tmp_path)


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.calls = folder / "calls"

    def environment(self, **variables):
        return (
            os.environ
            | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self.calls)}
            | {"PYTHONPATH": str(REPOSITORY)}
            | variables
        )

    def submit(self, *flags, arguments=TRAINING):
        command = [sys.executable, "-m", "launch.slurm", "--python=venv/python", *flags]
        return subprocess.run(
            [*command, "--", *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
        )

    def run(self, codes, **variables):
        """As SLURM would: the exit code of the script."""
        environment = self.environment(SLURM_JOB_ID="7", CODES=codes, **variables)
        script = self.calls / "script"
        done = subprocess.run(
            ["bash", str(script)], env=environment, capture_output=True, text=True
        )
        assert not list(self.folder.glob(".maft-*")), "left behind"
        return done

    def read(self, name):
        path = self.calls / name
        return path.read_text() if path.exists() else ""


def test_script_asks_for_what_is_requested(cluster):
    flags = ["--nodes=2", "--gpus_per_node=8", "--time=3:00:00", "--sbatch_flag=--account=lab"]
    done = cluster.submit(*flags, "--name=coco")
    assert done.returncode == 0 and "Submitted batch job 7" in done.stdout, done.stderr
    lines = cluster.read("script").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert asked == [
        "--job-name=coco",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=3:00:00",
        "--requeue",
        "--open-mode=append",
        "--output=coco-%j.log",
        "--signal=TERM@180",
        "--account=lab",
    ]
    assert lines.index("set -uo pipefail") > max(map(lines.index, lines[1:11])), "directives first"


@pytest.mark.parametrize("tasks", ["per_gpu", "per_node"])
def test_script_is_bash_and_shellcheck_has_nothing_to_say(cluster, tasks):
    file = cluster.folder / "tokens.env"
    file.write_text("TOKEN=x\n")
    file.chmod(0o600)
    cluster.submit("--gpus_per_node=4", f"--tasks={tasks}", "--env_file=tokens.env")
    script = cluster.calls / "script"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    shellcheck(script)


def test_every_task_runs_the_training_with_its_arguments_and_secrets(cluster):
    file = cluster.folder / "tokens.env"
    file.write_text("TOKEN=s3cret $HOME\n")
    file.chmod(0o600)
    cluster.submit("--gpus_per_node=2", "--env_file=tokens.env")
    assert "s3cret" not in cluster.read("script")
    done = cluster.run("[0, 0]")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in cluster.read("trainings").splitlines()]
    for task, record in enumerate(records):
        assert record == {
            "argv": ["-m", "maft_jax.main", *TRAINING],
            "task": task,
            "token": "s3cret $HOME",
            "devices": None,
        }
    assert len(records) == 2
    assert "s3cret" not in cluster.read("srun") and "--gpu-bind=none" in cluster.read("srun")
    assert cluster.read("scontrol") == ""


def test_one_task_per_node_has_all_gpus(cluster):
    cluster.submit("--gpus_per_node=4", "--tasks=per_node")
    assert "#SBATCH --ntasks-per-node=1\n" in cluster.read("script")
    assert cluster.run("[0]", TASKS="1").returncode == 0
    assert '"devices": "0,1,2,3"' in cluster.read("trainings")


def test_shell_of_a_task_waits_for_training_to_save(cluster):
    cluster.submit("--gpus_per_node=2")
    cluster.run('["TERM", "TERM"]')
    assert cluster.read("scontrol") == "saved\nsaved\nrequeue 7\n"


@pytest.mark.parametrize("codes", ["[143, 143]", "[134, 137]"])
def test_interrupted_training_goes_back_into_the_queue(cluster, codes):
    cluster.submit("--gpus_per_node=2")
    done = cluster.run(codes)
    assert done.returncode > 128
    assert cluster.read("scontrol") == "requeue 7\n"
    assert len(cluster.read("trainings").splitlines()) == 2


@pytest.mark.parametrize(("codes", "code"), [("[134, 2]", 2), ("[1, 143]", 1), ("[2, 1]", 2)])
def test_what_trying_again_cannot_mend_is_not_tried_again(cluster, codes, code):
    cluster.submit("--gpus_per_node=2")
    done = cluster.run(codes)
    assert done.returncode == code and "not tried again" in done.stderr
    assert cluster.read("scontrol") == ""


def test_restarts_are_limited(cluster):
    cluster.submit("--gpus_per_node=2", "--max_restarts=3")
    done = cluster.run("[143, 143]", SLURM_RESTART_COUNT="3")
    assert done.returncode == 143 and "restarted 3 times already" in done.stderr
    assert cluster.read("scontrol") == ""


def test_dry_run_prints_the_script_and_submits_nothing(cluster):
    printed = cluster.submit("--gpus_per_node=2", "--dry-run").stdout
    assert cluster.read("script") == ""
    cluster.submit("--gpus_per_node=2")
    command, comment, script = printed.split("\n", 2)
    assert command == "sbatch" and comment.startswith("#")
    assert script == cluster.read("script")


@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (["--name=a b"], TRAINING, "--name=a b: expected letters"),
        (["--nodes=0"], TRAINING, "--nodes=0: expected 1 or more"),
        (["--sbatch_flag=-p gpu"], TRAINING, "--sbatch_flag=-p gpu: expected --NAME=VALUE"),
        (["--env_file=none.env"], TRAINING, "--env_file=none.env: there is no such file"),
        ([], ["--workdir=w"], "--config=... among them"),
    ],
)
def test_wrong_flags_are_refused(cluster, flags, arguments, message):
    done = cluster.submit("--gpus_per_node=2", *flags, arguments=arguments)
    assert done.returncode == 2 and message in done.stderr
    assert cluster.read("script") == ""
