"""What the launch commands share: flags, errors as short messages, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence

from launch import interruptions
from launch.harmless_output import harmless_output
from launch.interruptions import Interrupted
from launch.runner import LaunchError


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before -- and what stands after it, which is maft_jax.main's."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def check_training_arguments(arguments: list[str], *, shared: str) -> None:
    """Refuses what could not train, before anything is rented.

    Args:
        shared: how the workdir has to begin, "gs://" where machines come and go.

    Raises:
        ValueError: a flag is missing, or the workdir would be lost with the machine.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for flag in ("--config", "--workdir"):
        if not given.get(flag):
            raise ValueError(
                f"expected the flags of maft_jax.main after --, {flag}=... among them: "
                f"... -- --config=configs/coco.py --workdir={shared or 'runs/'}... "
                f"(with an equals sign); got {arguments}"
            )
    if not given["--workdir"].startswith(shared):
        raise ValueError(
            f"--workdir={given['--workdir']}: the machine's disk is lost with the machine; "
            f"expected {shared}BUCKET/FOLDER"
        )


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, list[str]], None],
    argv: Sequence[str],
) -> int:
    """Calls `work` with the flags and with what stands behind --.

    What its caller can mend becomes a message on stderr and an exit code: 0 done, 1 failed, 2 wrong
    input, 128 + signal when interrupted; errors may have their own.
    """
    flags, arguments = split_arguments(argv)
    options = parser.parse_args(flags)
    interruptions.note_signals()
    try:
        with harmless_output():
            work(options, arguments)
        interruptions.check()
    except ValueError as error:
        return _failed(error, 2)
    except (LaunchError, Interrupted) as error:
        return _failed(error, error.exit_code)
    except OSError as error:
        return _failed(error, 1)
    return 0


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """The flag that all commands have."""
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print what would be executed, as if all went well, and execute nothing",
    )


def _failed(error: BaseException, code: int) -> int:
    if not isinstance(error, Interrupted):
        with harmless_output():
            print(f"\n{error}", file=sys.stderr)
    return code
