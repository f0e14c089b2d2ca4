"""Times what training does on this machine, and writes the numbers with what they depend on.

    python -m maft_jax.cli.benchmark --config=configs/coco.py --json=step.json
    python -m maft_jax.cli.benchmark --config=configs/coco.py --compare=torch
    python -m maft_jax.cli.benchmark --config=configs/coco.py \\
        --what=step,input,evaluation,precompute

By default neither data nor weights are needed: images and proposals are drawn in the configured
sizes, and where config.model.pretrained is no file, its name says the size of random weights.
--data=configured reads the configuration's own data. docs/benchmark.md explains every number.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted.

Every setting can be given as --config.NAME=VALUE:
"""

import os

from absl import flags

from maft_jax.cli import command_line, config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.runtime.console import log_to_stderr, run_and_report

__doc__ += describe_fields(Config, "--config.")

_WHAT = flags.DEFINE_list("what", ["step"], "of step, input, evaluation, precompute; with commas")
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
_JSON = command_line.define_path("json", None, "file to write the numbers to")


def main(config: Config) -> int:
    """Measures, and returns the exit code."""
    log_to_stderr()

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
        results = run_benchmark(config, options)
        if jax.process_index() == 0:
            print(describe(results))
            if _JSON.value:
                write_results(results, _JSON.value)

    return run_and_report(work)


def run() -> None:
    """Parses the command line and exits with main's code."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
