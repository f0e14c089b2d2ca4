"""Repeats the studies in shapes world: the method with its ablations, and methods compared.

    python -m maft_jax.cli.shapes_world_study --workdir=runs/study --page=docs

Some hours on two CPU cores, with the generators of masks and the CLIPs that it trains. Runs that
WORKDIR holds are not repeated, so that the command goes on where it was stopped. PAGE then has
shapes_world.md with its tables and figures, and what they are made of, shapes_world/runs.json and
learned_masks.json and proposal_recall.json; and methods_study.md, made of
shapes_world/methods.json and two files of other CLIPs, which it trains. With
--tables=learned_masks, proposal_recall, methods, methods_convnext or methods_second_clip that file
alone is new, and its page is made again.
The generator that comes with the package is generator_float16 in
WORKDIR/generators/split_0-DIGEST, whose name has a digest of its configuration. Results are named
by what was run and by the content of the weights that it read.
maft_jax/shapes_world/experiments.py says what is run.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.
"""

import pathlib

from absl import flags

from maft_jax.cli import command_line
from maft_jax.runtime.console import log_to_stderr, run_and_report

_WORKDIR = command_line.define_path("workdir", "runs/study", "folder for worlds and runs")
_PAGE = command_line.define_path("page", "runs/study/page", "folder to write the page to")
_TABLES = flags.DEFINE_list(
    "tables",
    [],
    "only these tables' runs, with a page for learned_masks, proposal_recall, methods, "
    "methods_convnext or methods_second_clip alone; empty = all",
)


def main(arguments: list[str]) -> int:
    """Runs the study, writes its page, and returns the exit code."""
    del arguments
    log_to_stderr()

    def work():
        from maft_jax.shapes_world.study import run_study, write_study

        records = run_study(pathlib.Path(_WORKDIR.value), _TABLES.value)
        for page in write_study(records, pathlib.Path(_PAGE.value)):
            print(page)

    return run_and_report(work)


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, command_line.flags_alone)


if __name__ == "__main__":
    run()
