"""Shows on two CPU cores in a few minutes what mask-aware fine-tuning does; nothing to download.

    python -m maft_jax.cli.demo --workdir=runs/demo

It draws shapes world (pictures of "a striped red shape" or "a plain blue shape" on "brick" and
"grass", with label maps), makes mask proposals for it with a generator that comes with the package
and learned from the seen classes alone, evaluates a tiny CLIP, which comes with it too, fine-tunes
it on the seen classes, evaluates it on all, and draws what changed. Stop it with Ctrl-C and give
the same command: it goes on. docs/shapes_world.md has the same for several seeds, and what happens
when parts of the method are left out. The generator learned without the unseen classes of split 0;
with another --split masks are drawn from the labels, better and worse ones.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.
"""

import pathlib
import sys

from absl import flags

from maft_jax.cli import command_line
from maft_jax.runtime.console import log_to_stderr, run_and_report

_WORKDIR = command_line.define_path("workdir", "runs/demo", "folder to write to")
_SEED = flags.DEFINE_integer("seed", 0, "another one is another world", lower_bound=0)
_SPLIT = flags.DEFINE_integer(
    "split", 0, "which 12 of the 36 objects training does not see", lower_bound=0, upper_bound=2
)
_CLIP = command_line.define_path("clip", "", "weights to begin with; empty = those of the package")


def main(arguments: list[str]) -> int:
    """Runs the demonstration, says what to do next, and returns the exit code."""
    del arguments
    log_to_stderr()
    workdir = pathlib.Path(_WORKDIR.value)

    def work():
        from maft_jax.shapes_world.demonstration import demonstrate

        print(demonstrate(workdir, _SEED.value, _SPLIT.value, _CLIP.value), file=sys.stderr)

    return run_and_report(work)


def _check(arguments: list[str]) -> list[str]:
    if not _WORKDIR.value:
        raise ValueError("--workdir: expected a folder to write to, got an empty name")
    return command_line.flags_alone(arguments)


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, _check)


if __name__ == "__main__":
    run()
