"""Times what training does on this machine, and writes the numbers with what they depend on.

    python -m maft_jax.cli.benchmark --config=configs/coco.py --json=step.json
    python -m maft_jax.cli.benchmark --config=configs/coco.py --compare=torch
    python -m maft_jax.cli.benchmark --config=configs/coco.py \\
        --what=step,input,evaluation,precompute
    python -m maft_jax.cli.benchmark --config=configs/coco.py --compare=torch \\
        --minutes=8 --json=gpu.json

By default neither data nor weights are needed: images and proposals are drawn in the configured
sizes, and where config.model.pretrained is no file, its name says the size of random weights.
--data=configured reads the configuration's own data. docs/benchmark.md explains every number.

--minutes measures all that docs/performance.md reports of a device instead of --what: what matters
most first, each part printed and written when it is done, what finds no time left out and named.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.

Every setting can be given as --config.NAME=VALUE:
"""

import os
import time

from absl import flags

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.runtime.console import log_to_stderr, run_and_report

__doc__ += describe_fields(Config, "--config.")

_STARTED = time.monotonic()

_WHAT = flags.DEFINE_list(
    "what", ["step"], "of step, input, evaluation, precompute, encoders; with commas"
)
_STEPS = flags.DEFINE_integer("steps", 20, "runs that are timed", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 3, "runs before that are not timed", lower_bound=0)
_DATA = flags.DEFINE_enum(
    "data", "random", ["random", "configured"], "drawn on the spot, or the configuration's own"
)
_COMPARE = flags.DEFINE_enum(
    "compare",
    None,
    ["torch"],
    "also run the plain PyTorch rendition of the official step or inference, taking turns",
)
_PEAK_TFLOPS = flags.DEFINE_float(
    "peak_tflops", None, "peak of a device, for MFU where it is not known or another is meant"
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "measure everything, in at most so long from the start on", lower_bound=0.1
)
_JSON = command_line.define_path("json", None, "file to write the numbers to")


def main(config: Config) -> int:
    """Measures, and returns the exit code."""
    log_to_stderr()
    failures: list[str] = []

    def work():
        if _COMPARE.value:
            # Two libraries share the device, of whose memory jax would else take three quarters.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        from maft_jax.benchmarks.options import BenchmarkOptions
        from maft_jax.benchmarks.report import describe
        from maft_jax.benchmarks.run import run_benchmark, write_results

        options = BenchmarkOptions(
            what=tuple(_WHAT.value),
            steps=_STEPS.value,
            warmup=_WARMUP.value,
            configured_data=_DATA.value == "configured",
            compare_torch=_COMPARE.value == "torch",
            peak_flops=_PEAK_TFLOPS.value and _PEAK_TFLOPS.value * 1e12,
        )
        if _MINUTES.value:
            failures.extend(_measure_all(config, options))
            return
        results = run_benchmark(config, options)
        if jax.process_index() == 0:
            print(describe(results))
            if _JSON.value:
                write_results(results, _JSON.value)

    return run_and_report(work) or int(bool(failures))


def _measure_all(config: Config, options) -> list[str]:
    """Prints and writes every part when it is done; returns those that failed."""
    from maft_jax.benchmarks.report import (
        describe_provenance,
        describe_suite_end,
        describe_suite_part,
    )
    from maft_jax.benchmarks.run import provenance, write_results
    from maft_jax.benchmarks.suite import run_suite

    print(describe_provenance(provenance()), flush=True)

    def on_part(results: dict, name: str) -> None:
        print(f"\n{describe_suite_part(results, name)}", flush=True)
        if _JSON.value:
            write_results(results, _JSON.value)

    results = run_suite(config, options, 60 * _MINUTES.value, _STARTED, on_part)
    print(f"\n{describe_suite_end(results)}")
    return list(results["failed"])


def run() -> None:
    """Parses the command line and exits with main's code."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
