"""A run small enough for tests: the sample folder, random:tiny, a few steps."""

import json
import os
import pathlib
import subprocess
import sys
import time

from input_pipeline.sample_folder import write_sample_folder
from maft_jax.config import Config, from_config_dict, preset
from tests.warm_processes import WARM, WarmProcess

REPOSITORY = pathlib.Path(__file__).parent.parent

SETTINGS = {
    "batch_size": 8,
    "num_steps": 6,
    "log_every_steps": 2,
    "model.pretrained": "random:tiny",
    "model.mask_start_layer": 2,
    "model.image_size": 64,
    "data.crop_size": 64,
    "data.short_sides": (64, 80),
    "data.reading_processes": 1,  # on machines of many cores, too
    "proposals.num_proposals": 8,
    "optimizer.learning_rate": 2e-4,
    "checkpointing.every_steps": 4,
}


def make_data(folder: pathlib.Path) -> dict:
    """Settings that point to a fresh sample folder and an empty cache."""
    write_sample_folder(folder / "data")
    return {"data.root": str(folder / "data"), "data.cache_dir": str(folder / "cache")}


def small_config(data: dict, **changes) -> Config:
    """SETTINGS on `data`; changes use "__" for the dot of a section."""
    config = preset("official")
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(SETTINGS | data | changes)
    return from_config_dict(config)


def command(data: dict, workdir: pathlib.Path, **changes) -> list[str]:
    """The command line of the same run."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = SETTINGS | data | changes
    return [
        sys.executable,
        "-m",
        "maft_jax.main",
        "--config=configs/folder.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def start(
    arguments: list[str],
    stdout=subprocess.PIPE,
    environment: dict[str, str] | None = None,
    *,
    start_new_session: bool = False,
    warm: bool = True,
) -> subprocess.Popen | WarmProcess:
    """Starts a command from the repository, on one CPU device, with the shared compile cache.

    Slow tests start modules warm, see there, if `warm`.
    """
    environment = (
        os.environ
        | (environment or {})
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(REPOSITORY),
        }
    )
    if warm and WARM in environment and arguments[:2] == [sys.executable, "-m"]:
        return WarmProcess(arguments[1:], environment, stdout, start_new_session)
    return subprocess.Popen(
        arguments,
        cwd=REPOSITORY,
        env=environment,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def finish(process: subprocess.Popen, exit_code: int = 0) -> str:
    """Waits, checks the exit code, and returns what the command printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == exit_code, output
    return output


def wait_until(condition, process):
    """Polls fast: a save of this small state lasts a quarter of a second."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.0005)


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
