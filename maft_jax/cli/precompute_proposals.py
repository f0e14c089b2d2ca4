"""Computes the mask proposals of a data set once, and writes the records that training reads.

    python -m maft_jax.cli.precompute_proposals --config=configs/folder.py \\
        --config.data.root=my_photos --config.data.records=my_records

Without config.data.records the records go to the cache, where training finds them by the same
settings. The same command goes on after Ctrl-C, a crash or a kill, and computes again only what
changed. Proposals need no CLIP weights. docs/precompute.md tells more.

Several machines that share the folder: the same command on each, with --process_count=P and
--process_index=0 ... P-1. Dataflow, Flink or Spark: --engine=beam, with Beam's options after --

    python -m maft_jax.cli.precompute_proposals --config=... --engine=beam -- --runner=...

With --config.loss.cached_teacher=True also the frozen CLIP's probabilities of every image, which
training then does not compute in every step; this needs --config.model.pretrained and, for large
sets, an accelerator.

Exit codes: 0 done, 1 failed or (--verify) corrupt, 2 wrong input, 130 and 143 interrupted.

Settings that matter here:
"""

import sys
import time

from absl import flags

from maft_jax.cli import config_flags
from maft_jax.config import Config
from maft_jax.config.fields import describe_fields
from maft_jax.config.sections import DataConfig, ProposalsConfig
from maft_jax.runtime.console import log_to_stderr, run_and_report

__doc__ += describe_fields(DataConfig, "--config.data.") + "\n"
__doc__ += describe_fields(ProposalsConfig, "--config.proposals.")

_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "processes on this machine, of a generator on devices threads; default: one per CPU, fewer for "
    "few images",
    lower_bound=1,
)
_PROCESS_INDEX = flags.DEFINE_integer(
    "process_index", 0, "which of the process_count commands this is", lower_bound=0
)
_PROCESS_COUNT = flags.DEFINE_integer(
    "process_count", 1, "commands, usually on as many machines, that share the work", lower_bound=1
)
_ENGINE = flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "beam"],
    "what runs it; options of Beam's follow after --. Networks in JAX run locally, on all devices",
)
_DOWNLOAD = flags.DEFINE_bool("download", False, "first download what the data set lacks")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "replace records of another recipe in config.data.records"
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "compute nothing; check every byte of the records that are there"
)

_beam_options: list[str] = []


class CorruptRecords(Exception):
    """What --verify found."""

    exit_code = 1


class RecordsUnfinished(Exception):
    """Other processes still compute proposals, which must all be there before the teacher is."""

    exit_code = 1


def main(config: Config) -> int:
    """Computes or checks records, and returns the exit code."""
    log_to_stderr()
    work = _verify if _VERIFY.value else _compute
    return run_and_report(lambda: work(config))


def _compute(config: Config) -> None:
    # Imported late: --help and wrong configurations answer at once.
    from maft_jax.proposals.label_agreement import check_several_classes
    from maft_jax.proposals.precompute import precompute
    from maft_jax.proposals.precompute_job import job_from_config

    _check_flags()
    if config.loss.cached_teacher and not config.model.pretrained:
        raise ValueError(
            "config.loss.cached_teacher: expected the weights of the teacher; give "
            "--config.model.pretrained=ViT-B-16.pt"
        )
    if _DOWNLOAD.value:
        from input_pipeline.downloads import download_dataset

        download_dataset(config.data.dataset, config.data.root, config.data.split)
    job = job_from_config(config, overwrite=_OVERWRITE.value)
    check_several_classes(job.source)
    start = time.monotonic()
    if _ENGINE.value == "beam":
        from maft_jax.proposals import beam_precompute

        summary = beam_precompute.run(job, _beam_options)
    else:
        summary = precompute(job, _WORKERS.value, _PROCESS_INDEX.value, _PROCESS_COUNT.value)
    print(
        f"\n{summary.describe()}\n"
        f"time                 {time.monotonic() - start:,.1f} s\n"
        f"records              {job.folder}"
    )
    if config.loss.cached_teacher:
        if summary.num_shards < summary.total_shards:
            raise RecordsUnfinished(
                f"{summary.num_shards} of {summary.total_shards} shards are finished; when the "
                "other commands have ended, give all of them again to compute the teacher"
            )
        _compute_teacher(config)


def _compute_teacher(config: Config) -> None:
    from maft_jax.training.teacher import compute_missing, open_teacher

    start = time.monotonic()
    teacher = open_teacher(config)
    compute_missing(teacher, _PROCESS_INDEX.value, _PROCESS_COUNT.value)
    cache = teacher.cache
    print(
        f"teacher              {cache.num_parts - len(cache.missing_parts())} of "
        f"{cache.num_parts} parts, {time.monotonic() - start:,.1f} s\n"
        f"                     {cache.folder}"
    )


def _check_flags() -> None:
    local = [
        f"--{flag.name}"
        for flag in (_WORKERS, _PROCESS_INDEX, _PROCESS_COUNT)
        if flag.value != flag.default
    ]
    if _ENGINE.value == "beam" and local:
        raise ValueError(
            f"{' and '.join(local)}: for --engine=local only; Beam spreads the work by its own "
            "options, after --"
        )
    if _ENGINE.value == "local" and _beam_options:
        raise ValueError(f"unexpected {_beam_options}; options after -- need --engine=beam")


def _verify(config: Config) -> None:
    from input_pipeline.records.record_verification import verify_records
    from maft_jax.proposals.precompute_job import records_folder

    folder = records_folder(config)
    problems = verify_records(folder)
    if problems:
        raise CorruptRecords("\n  ".join([f"{folder}: {len(problems)} problems:", *problems]))
    print(f"{folder}: every record is whole")


def run() -> None:
    """Parses the command line and exits with main's code."""
    if "--" in sys.argv:
        end = sys.argv.index("--")
        _beam_options.extend(sys.argv[end + 1 :])
        del sys.argv[end:]
    config_flags.run(main, require_weights=False)


if __name__ == "__main__":
    run()
