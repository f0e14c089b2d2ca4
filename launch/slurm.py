"""Trains on the GPUs of a SLURM cluster: writes a batch script and submits it.

    python -m launch.slurm --name=maft --nodes=2 --gpus_per_node=8 --time=12:00:00 \\
        --sbatch_flag=--partition=gpu -- \\
        --config=configs/coco.py --workdir=/shared/runs/coco ...

--dry-run prints the script. Code, Python environment, data and workdir are on disks that all nodes
see. Before the time limit, and when the job is preempted, training saves, and the job goes back
into the queue and resumes; what training refuses (exit code 2) or fails at (1) is not tried again.
srun starts one task per GPU, or per node (--tasks=per_node); maft_jax.main finds the others by
SLURM's variables.

Exit codes: 0 submitted, 1 failed, 2 wrong input.
"""

import argparse
import pathlib
import re
import shlex
import sys

from launch import command_line
from launch.dry_run import DryRunner
from launch.runner import LaunchError, SubprocessRunner
from launch.secrets_file import check_secrets_file

_SIGNAL_SECONDS = 180
"""Before the time limit, for the last checkpoint."""
_WAIT_SECONDS = 300
"""After the first task has left, for the others."""

_SCRIPT = """\
#!/usr/bin/env bash
{directives}
# Written by: python -m launch.slurm
set -uo pipefail
cd {folder} || exit 1
notes=$(mktemp --directory "$PWD/.maft-$SLURM_JOB_ID-XXXXXX") # all nodes see it
{environment}
# A task notes why it left: srun's own exit code is that of the worst. Its shell outlives SIGTERM,
# which is for training to save. Who has lost the others leaves by itself; --wait is for who hangs.
# shellcheck disable=SC2016  # the task's shell expands it
srun --wait={wait_seconds} --gpu-bind=none bash -c \\
    'trap : TERM; notes=$1; shift; "$@"; code=$?; touch "$notes/$code"; exit "$code"' \\
    task "$notes" {training}
code=$?
for final in 1 2; do
    if [[ -e $notes/$final ]]; then
        code=$final
    fi
done
rm -rf "$notes"

if [[ $code == 0 ]]; then
    exit 0
elif [[ $code == 1 || $code == 2 ]]; then
    echo "training ended with exit code $code; not tried again" >&2
elif ((${{SLURM_RESTART_COUNT:-0}} >= {max_restarts})); then
    echo "interrupted, and restarted {max_restarts} times already" >&2
else
    echo "interrupted (exit code $code); back into the queue, to resume" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

# NAME=value lines, exported as they are: values are never arguments.
_SECRETS = """\
while IFS= read -r line; do
    [[ $line =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] && export "${line?}"
done <ENV_FILE
"""


def make_script(options: argparse.Namespace, arguments: list[str]) -> str:
    """The batch script."""
    per_gpu = options.tasks == "per_gpu"
    flags = [
        f"--job-name={options.name}",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={options.gpus_per_node if per_gpu else 1}",
        f"--gpus-per-node={options.gpus_per_node}",
        f"--time={options.time}",
        "--requeue",
        "--open-mode=append",
        f"--output={options.name}-%j.log",
        f"--signal=TERM@{_SIGNAL_SECONDS}",  # to the tasks, which save
        *options.sbatch_flag,
    ]
    environment = ""
    if not per_gpu:  # or jax would take one GPU per task
        devices = ",".join(map(str, range(options.gpus_per_node)))
        environment += f"export JAX_LOCAL_DEVICE_IDS={devices}\n"
    if options.env_file is not None:
        path = pathlib.Path(options.env_file).resolve()
        environment += _SECRETS.replace("ENV_FILE", shlex.quote(str(path)))
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {flag}" for flag in flags),
        folder=shlex.quote(str(pathlib.Path.cwd())),
        environment=environment,
        training=shlex.join([options.python, "-m", "maft_jax.main", *arguments]),
        max_restarts=options.max_restarts,
        wait_seconds=_WAIT_SECONDS,
    )


def launch(options: argparse.Namespace, arguments: list[str]) -> None:
    """Checks everything, then submits."""
    command_line.check_training_arguments(arguments, shared="")
    if not re.fullmatch(r"[\w.-]+", options.name):
        raise ValueError(f"--name={options.name}: expected letters, digits, . - and _")
    for flag, value in (("nodes", options.nodes), ("gpus_per_node", options.gpus_per_node)):
        if value < 1:
            raise ValueError(f"--{flag}={value}: expected 1 or more")
    for flag in options.sbatch_flag:
        if not re.fullmatch(r"--[a-z][\w-]*(=\S+)?", flag):
            raise ValueError(
                f"--sbatch_flag={flag}: expected --NAME=VALUE, such as --partition=gpu"
            )
    if options.env_file is not None:
        check_secrets_file(options.env_file)
    script = make_script(options, arguments)
    if options.dry_run:
        DryRunner().run(["sbatch"], stdin=script)
        print(f"# with this on its standard input:\n{script}", end="")
        return
    done = SubprocessRunner().run(["sbatch"], stdin=script)
    if done.exit_code:
        raise LaunchError(f"sbatch failed:\n{done.stderr.strip()}")
    print(done.stdout.strip())
    print(f"output:  {options.name}-JOB.log    watch: squeue --me    stop: scancel JOB")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        prog="python -m launch.slurm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--name", default="maft", help="of the job; default maft")
    add("--nodes", type=int, default=1, help="default 1")
    add("--gpus_per_node", type=int, required=True)
    add("--tasks", choices=["per_gpu", "per_node"], default="per_gpu", help="default per_gpu")
    add("--time", default="12:00:00", help="time limit of a stretch; default 12:00:00")
    add("--python", default=".venv/bin/python", help="of the environment; default .venv/bin/python")
    add("--max_restarts", type=int, default=20, help="default 20")
    add(
        "--sbatch_flag",
        action="append",
        default=[],
        help="a further flag of sbatch, such as --sbatch_flag=--account=lab; repeatable",
    )
    add(
        "--env_file",
        help="file of NAME=value lines for training's environment, such as tokens, that only you "
        "may read (chmod 600)",
    )
    command_line.add_dry_run(made)
    return made


def main(argv: list[str]) -> int:
    """Submits, and returns the exit code."""
    return command_line.run(parser(), launch, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
