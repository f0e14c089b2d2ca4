"""`maft-jax NAME ...`: runs a command by its name, as `python -m` runs its module.

A command's own imports and flags begin when it runs: nothing of it is loaded here.
"""

import pathlib
import runpy
import sys
from typing import NoReturn

from maft_jax.runtime import stop_requests
from maft_jax.runtime.command_names import COMMANDS, PROGRAM, note_call


def main() -> NoReturn:
    """Runs the command that the first word names, or says which there are, and exits."""
    stop_requests.watch()
    name, *arguments = sys.argv[1:] or [""]
    if name in ("--help", "-help", "-h"):
        print(_overview())
        sys.exit(0)
    if name == "--version":
        from maft_jax import __version__

        print(f"{PROGRAM} {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        _refuse(name)
    command = COMMANDS[name]
    note_call(name)
    if command.config and not any(map(_is_config, arguments)):
        own = pathlib.Path(__file__).absolute().parents[1] / command.config
        arguments.insert(0, f"--config={own}")  # a working folder's file runs only if named
    sys.argv[1:] = arguments
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _is_config(argument: str) -> bool:
    return argument.startswith("-") and argument.lstrip("-").partition("=")[0] == "config"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Mask-aware fine-tuning of CLIP.",
            "",
            f"    {PROGRAM} COMMAND --help",
            "",
            *lines,
            "",
            f"Each is `python -m` of a module, too, such as `python -m {COMMANDS['demo'].module}`.",
        ]
    )


def _refuse(name: str) -> NoReturn:
    """Ends with the nearest name; that of a command's module counts, too."""
    import difflib

    from maft_jax.runtime.console import failed

    spellings = {name: name for name in COMMANDS}
    for known, command in reversed(COMMANDS.items()):
        spellings[command.module.rpartition(".")[2]] = known
    if not name:
        sys.exit(failed(_overview(), 2))
    if close := difflib.get_close_matches(name.replace("_", "-"), spellings, 1, 0.5):
        sys.exit(failed(f"{name}: no such command; did you mean {spellings[close[0]]}?", 2))
    sys.exit(failed(f"{name}: no such command; {PROGRAM} --help lists them", 2))


if __name__ == "__main__":
    main()
