"""Fine-tunes CLIP with mask proposals (MAFT).

    python -m maft_jax.main --config=configs/folder.py --workdir=runs/first \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt

The same command resumes a run that was stopped; Ctrl-C and SIGTERM save first.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted and saved.

Every setting can be given as --config.NAME=VALUE:
"""

import importlib.util
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from maft_jax.config import Config, check_override, describe_fields, from_config_dict
from maft_jax.console import failed, log_to_stderr, run_and_report

__doc__ += describe_fields()

_CONFIG = config_flags.DEFINE_config_file("config", None, "such as configs/coco.py:paper")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, metrics and config.json")


def main(config: Config) -> int:
    """Trains, and returns the exit code."""
    log_to_stderr()

    def train():
        from maft_jax.train_loop import train_and_evaluate

        train_and_evaluate(config, _WORKDIR.value)

    return run_and_report(train)


def parse_command_line(argv: list[str]) -> Config:
    """What absl, ml_collections or we refuse becomes a short message and exit code 2."""
    try:
        for argument in argv[1:]:
            check_override(argument)
        if unexpected := flags.FLAGS(argv)[1:]:
            raise ValueError(f"unexpected {unexpected}; settings look like --config.NAME=VALUE")
        return from_config_dict(_CONFIG.value)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip()
        if "Traceback" in reason or isinstance(error, OSError | AttributeError):
            reason = f"--config: {reason.splitlines()[-1].strip()}"  # what goes before says how
        sys.exit(failed(reason, 2))


def find_config(argument: str) -> str:
    """Lets --config=configs/x.py mean the installed file where there is no such local one."""
    option, equals, value = argument.partition("=")
    path, colon, variant = value.partition(":")
    if option.lstrip("-") == "config" and equals and not os.path.exists(path):
        installed = importlib.util.find_spec("maft_jax.configs")
        for folder in (installed.submodule_search_locations if installed else None) or ():
            if os.path.isfile(candidate := os.path.join(folder, os.path.basename(path))):
                return f"{option}={candidate}{colon}{variant}"
    return argument


def run() -> None:
    """Parses the command line and exits with main's code."""
    sys.argv = [sys.argv[0], *map(find_config, sys.argv[1:])]
    flags.register_validator("config", bool, "expected a Python file: --config=configs/folder.py")
    flags.register_validator("workdir", bool, "expected the run's folder: --workdir=runs/first")
    app.run(main, flags_parser=parse_command_line)


if __name__ == "__main__":
    run()
