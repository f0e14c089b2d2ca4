"""Times the input pipeline by itself: images per second and core, and where the time goes.

    python -m maft_jax.cli.benchmark_input
    python -m maft_jax.cli.benchmark_input --records=FOLDER --num_workers=16 --json=speed.json
    python -m maft_jax.cli.benchmark_input --num_processes=4 --step_ms=50

reads records from disk and makes training batches of them, without JAX. By default they hold
photographs of 640x480 pixels with 100 proposals each; docs/input_pipeline.md has results.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.
"""

import json
import os
import pathlib
import tempfile

from absl import flags

from maft_jax.cli import command_line
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.runtime.console import log_to_stderr, run_and_report

_RECORDS = command_line.define_path("records", None, "folder of records; default: photographs")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 32, "photographs to make", lower_bound=1)
_NUM_PROPOSALS = flags.DEFINE_integer("num_proposals", 100, "proposals of each", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "images", lower_bound=1)
_NUM_BATCHES = flags.DEFINE_integer("num_batches", 30, "batches that are timed", lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", len(os.sched_getaffinity(0)), "threads", lower_bound=1
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    0,
    "processes that read, with these threads together; 1 = this one, 0 = as in training",
    lower_bound=0,
)
_STEP_MS = flags.DEFINE_float(
    "step_ms", 0.0, "milliseconds that pass after every batch, as a step would", lower_bound=0
)
_JSON = command_line.define_path("json", None, "file to write the numbers to")


def main(arguments: list[str]) -> int:
    """Measures, and returns the exit code."""
    del arguments
    log_to_stderr()
    return run_and_report(_measure)


def _measure() -> None:
    # Imported late: --help and wrong flags answer at once.
    from input_pipeline.benchmark import describe, measure
    from input_pipeline.benchmark_records import write_benchmark_records
    from input_pipeline.process_batches import choose_num_processes
    from maft_jax.runtime import stop_requests

    tick = stop_requests.check
    with tempfile.TemporaryDirectory() as folder:
        if not _RECORDS.value:
            write_benchmark_records(folder, _NUM_IMAGES.value, _NUM_PROPOSALS.value, tick)
        results = measure(
            _RECORDS.value or folder,
            _BATCH_SIZE.value,
            _NUM_BATCHES.value,
            _NUM_WORKERS.value,
            tick=tick,
            num_processes=choose_num_processes(_NUM_PROCESSES.value),
            step_seconds=_STEP_MS.value / 1e3,
        )
    print(describe(results))
    if _JSON.value:
        pathlib.Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_JSON.value) as aside:
            aside.write_text(json.dumps(results, indent=2) + "\n")


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, command_line.flags_alone)


if __name__ == "__main__":
    run()
