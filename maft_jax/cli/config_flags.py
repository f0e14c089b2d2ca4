"""The --config flag that commands share: found, overridden, validated, refused in one line."""

import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from maft_jax.cli import command_line
from maft_jax.config import RENAMED, Config, from_config_dict
from maft_jax.config.fields import expand_path, field_names
from maft_jax.runtime import stop_requests
from maft_jax.runtime.console import failed

_CONFIG = config_flags.DEFINE_config_file("config", None, "such as configs/coco.py:paper")


def run(
    main: Callable[[Config], int],
    require_weights: bool = True,
    prepare: Callable[[ConfigDict], None] | None = None,
) -> None:
    """Parses the command line, calls `main` with the configuration, and exits with its code.

    The module that calls this prints its docstring for --help; it should end with what
    `settings.describe_fields` makes. Without `require_weights`, config.model.pretrained may be
    empty. `prepare` may check or fill in settings before they are validated.
    """
    stop_requests.watch()
    sys.argv = [sys.argv[0], *map(find_config, sys.argv[1:])]
    command_line.leave_with_help_if_asked()
    flags.register_validator("config", bool, "expected a Python file: --config=configs/folder.py")
    parse = functools.partial(parse_command_line, require_weights=require_weights, prepare=prepare)
    app.run(lambda config: stop_requests.leave(main(config)), flags_parser=parse)


def parse_command_line(
    argv: list[str],
    require_weights: bool,
    prepare: Callable[[ConfigDict], None] | None = None,
) -> Config:
    """What absl, ml_collections or we refuse becomes a short message and exit code 2."""
    try:
        for argument in argv[1:]:
            check_override(argument)
        if unexpected := flags.FLAGS(argv)[1:]:
            raise ValueError(f"unexpected {unexpected}; settings look like --config.NAME=VALUE")
        if prepare is not None:
            prepare(_CONFIG.value)
        return from_config_dict(_CONFIG.value, require_weights)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip()
        if "Traceback" in reason or isinstance(error, OSError | AttributeError):
            reason = f"--config: {reason.splitlines()[-1].strip()}"  # what goes before says how
        reason += _present_names(reason)
        sys.exit(failed(reason, 2))


def _present_names(reason: str) -> str:
    """What to add where a configuration file sets what has another name now."""
    return "".join(
        f"; config.{old} is config.{new} now"
        for old, new in RENAMED.items()
        if f'"{old.rpartition(".")[2]}"' in reason
    )


def find_config(argument: str) -> str:
    """Lets --config=configs/x.py mean the installed file where there is no such local one."""
    option, equals, value = argument.partition("=")
    if option.lstrip("-") != "config" or not equals:
        return argument
    path, colon, variant = value.partition(":")
    path = expand_path(path)
    if not os.path.exists(path):
        installed = importlib.util.find_spec("maft_jax.configs")
        for folder in (installed.submodule_search_locations if installed else None) or ():
            if os.path.isfile(candidate := os.path.join(folder, os.path.basename(path))):
                return f"{option}={candidate}{colon}{variant}"
    return f"{option}={path}{colon}{variant}"


def check_override(argument: str) -> None:
    """Refuses a command-line argument --config.NAME or --noconfig.NAME without such a field.

    Raises:
        ValueError: names the closest fields; ml_collections would say only "'widht'".
    """
    option = argument.partition("=")[0].lstrip("-")
    name = option.removeprefix("no").removeprefix("config.")
    known = field_names(Config)
    if name in RENAMED:
        raise ValueError(f"--{option}: this setting is --config.{RENAMED[name]} now")
    if option.startswith(("config.", "noconfig.")) and name not in known:
        close = difflib.get_close_matches(name, known) or known
        raise ValueError(
            f"--{option}: there is no such setting; did you mean "
            f"{' or '.join(f'--config.{field}' for field in close[:3])}? (--help lists all)"
        )
