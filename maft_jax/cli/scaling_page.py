"""Compiles the train step of every configuration for TPUs and NVIDIA's cards, and writes the page.

    pip install 'maft_jax[plan,cuda-compile]'
    python -m maft_jax.cli.scaling_page --workdir=runs/scaling --page=docs

Half an hour on two CPU cores, without a TPU or a GPU: the TPU compiler does not search for the
fastest loops, which changes neither what fits nor what devices exchange. Plans that WORKDIR holds
are not made again, so that the command goes on where it was stopped; Ctrl-C waits ten seconds for
the end of a compilation. PAGE then has scaling.md, its picture, and what they are made of,
scaling/plans.json.
maft_jax/planning/scaling_study.py says what is compiled. After a change of the step use a folder
that does not exist yet.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.
"""

import os
import pathlib

from maft_jax.cli import command_line
from maft_jax.planning.topology import prepare_environment
from maft_jax.runtime.console import log_to_stderr, run_and_report

_WORKDIR = command_line.define_path("workdir", "runs/scaling", "folder of the plans")
_PAGE = command_line.define_path("page", "runs/scaling/page", "folder to write the page to")


def main(arguments: list[str]) -> int:
    """Makes the plans, writes their page, and returns the exit code."""
    del arguments
    log_to_stderr()

    def work():
        from maft_jax.planning.page import write_page
        from maft_jax.planning.scaling_study import run_study

        print(write_page(run_study(pathlib.Path(_WORKDIR.value)), pathlib.Path(_PAGE.value)))

    return run_and_report(work)


def run() -> None:
    """Parses the command line and exits with main's code."""
    prepare_environment()
    os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1"  # the page says what this changes
    command_line.run(main, command_line.flags_alone)


if __name__ == "__main__":
    run()
