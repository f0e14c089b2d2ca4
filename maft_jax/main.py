"""Fine-tunes CLIP with mask proposals (MAFT).

    python -m maft_jax.main --config=configs/folder.py --workdir=runs/first \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt

The same command resumes a run that was stopped; Ctrl-C and SIGTERM save first.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted and saved.

Every setting can be given as --config.NAME=VALUE:
"""

import importlib.util
import logging
import os
import pathlib
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from maft_jax.config import describe_fields, from_config_dict

__doc__ += describe_fields()

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(): configs/folder.py, configs/coco.py:paper"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the run: checkpoints, metrics, the resolved configuration"
)


def main(argv: list[str]) -> int:
    """Trains, and returns the exit code."""
    if len(argv) > 1:
        print(f"unexpected {argv[1:]}; settings look like --config.NAME=VALUE", file=sys.stderr)
        return 2
    log_to_stderr()
    # Imported late: --help and wrong configurations answer without loading JAX and TensorFlow.
    from maft_jax.stop_signals import TrainingInterrupted
    from maft_jax.train_loop import NonFiniteLossError, train_and_evaluate

    try:
        train_and_evaluate(from_config_dict(_CONFIG.value), _WORKDIR.value)
    except ValueError as error:
        return _failed(error, 2)
    except (NonFiniteLossError, OSError) as error:
        return _failed(error, 1)
    except TrainingInterrupted as stop:
        return _failed(stop, stop.exit_code)
    return 0


def log_to_stderr() -> None:
    """Our own progress with the time of day; from libraries only what they warn about."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for package in ("maft_jax", "input_pipeline"):
        logger = logging.getLogger(package)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def find_config(argument: str) -> str:
    """Lets --config=configs/x.py mean the installed file where there is no such local one."""
    option, equals, value = argument.partition("=")
    path, colon, variant = value.partition(":")
    if option.lstrip("-") != "config" or not equals or os.path.exists(path):
        return argument
    installed = importlib.util.find_spec("maft_jax.configs")
    for folder in (installed.submodule_search_locations if installed else None) or ():
        candidate = pathlib.Path(folder) / pathlib.Path(path).name
        if candidate.exists():
            return f"{option}={candidate}{colon}{variant}"
    return argument


def _failed(error: Exception, code: int) -> int:
    print(f"\n{error}", file=sys.stderr)
    return code


def run() -> None:
    """Parses the command line and exits with main's code."""
    sys.argv = [sys.argv[0], *map(find_config, sys.argv[1:])]
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        app.run(main)
    except (AttributeError, KeyError, TypeError) as error:  # how ml_collections refuses a field
        sys.exit(_failed(error, 2))


if __name__ == "__main__":
    run()
