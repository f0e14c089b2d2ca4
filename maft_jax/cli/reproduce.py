"""Fills the table of docs/reproduce.md in with what evaluations found.

    python -m maft_jax.cli.reproduce --runs=runs/reproduce --page=docs/reproduce.md

Reads RUNS/maft_b/evaluation/ade20k_full.json and so on, which the commands on that page write, and
prints the published numbers beside them. With --page the table there is replaced.

Exit codes: 0 done, 1 failed, 2 wrong input.
"""

import pathlib
import re

from maft_jax.cli import command_line
from maft_jax.runtime.console import log_to_stderr, run_and_report

_RUNS = command_line.define_path("runs", "runs/reproduce", "folder of the evaluations")
_PAGE = command_line.define_path("page", "", "page whose table is replaced; empty = none")
_TABLE = re.compile(r"^\| model \|.*(?:\n\|.*)*", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Prints the table, and returns the exit code."""
    del arguments
    log_to_stderr()
    return run_and_report(_fill_in)


def _fill_in() -> None:
    if not pathlib.Path(_RUNS.value).is_dir():
        raise ValueError(
            f"--runs={_RUNS.value}: no such folder; expected the one below which the commands of "
            "docs/reproduce.md write"
        )
    # Imported late: --help and wrong flags answer at once.
    from maft_jax.evaluators.published import reproduction_table
    from maft_jax.runtime.atomic_files import atomic_write_bytes

    table = reproduction_table(_RUNS.value)
    if _PAGE.value:
        page = pathlib.Path(_PAGE.value)
        text = page.read_text(encoding="utf-8")
        filled, tables = _TABLE.subn(lambda _: table, text)
        if tables != 1:
            raise ValueError(
                f"{page}: expected one table that begins with | model |, as docs/reproduce.md has, "
                f"got {tables}"
            )
        atomic_write_bytes(page, filled.encode())
    print(table)


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, command_line.flags_alone)


if __name__ == "__main__":
    run()
