"""Where metrics go: TensorBoard, a progress line, and metrics.jsonl. The only clu user here.

clu's writers raise errors of their threads at the next write, so the loop flushes at every
checkpoint.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from clu import metric_writers, parameter_overview
from etils import epath

from input_pipeline.write_errors import naming
from maft_jax.runtime import tree_rules
from maft_jax.runtime.atomic_files import atomic_write_bytes
from maft_jax.runtime.json_files import parse_json

MetricWriter = metric_writers.MetricWriter

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


def make_writer(
    workdir: epath.Path, num_steps: int, more: Iterable[MetricWriter] = ()
) -> MetricWriter:
    """TensorBoard events, progress lines and JSON lines of one run; the first process's alone.

    Args:
        more: writers that come after these, and are not closed with them.
    """
    if jax.process_index() != 0:
        return metric_writers.MultiWriter([])
    return metric_writers.MultiWriter(
        [
            metric_writers.SummaryWriter(str(workdir)),
            ProgressWriter(num_steps),
            JsonLinesWriter(workdir / METRICS_FILE),
            *more,
        ]
    )


def describe_parameters(trainable: Mapping, pretrained: Mapping) -> str:
    """A table of the trainable leaves and a line on what is frozen."""
    table = parameter_overview.get_parameter_overview(trainable, include_stats=False)
    tuned = parameter_overview.count_parameters(trainable)
    total = parameter_overview.count_parameters(pretrained)
    frozen = set(tree_rules.flatten(pretrained)) - set(tree_rules.flatten(trainable))
    kinds = sorted({re.sub(r"_\d+/", "_*/", path) for path in frozen})
    return (
        f"Trainable parameters:\n{table}\n"
        f"trainable {tuned:,} of {total:,}; frozen {total - tuned:,}: {', '.join(kinds) or 'none'}"
    )


class ScalarWriter(MetricWriter):
    """A writer of scalars alone: what a line of text cannot show is left to TensorBoard."""

    def _ignore(self, *args, **kwargs):
        pass

    write_summaries = write_images = write_videos = write_audios = _ignore
    write_texts = write_histograms = write_hparams = flush = close = _ignore


class ProgressWriter(ScalarWriter):
    """One line per write: where the run is, how fast, how long still, and every metric."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        """Metrics without `images_per_second` are an evaluation's, which logs a table itself."""
        if "images_per_second" not in scalars:
            return
        values = {name: float(value) for name, value in scalars.items()}
        speed = values.pop("images_per_second")
        seconds = values.pop("seconds_per_step")
        remaining = format_seconds((self._num_steps - step) * seconds)
        terms = sorted(name for name in values if name.endswith("_loss"))
        first = [name for name in ("loss", *terms, "grad_norm", "learning_rate") if name in values]
        names = first + sorted(set(values) - set(first))
        metrics = "  ".join(f"{name}={values[name]:.4g}" for name in names)
        logger.info(
            "step %d/%d  %s  | %.3g images/s  %.3g s/step  ETA %s",
            step,
            self._num_steps,
            metrics,
            speed,
            seconds,
            remaining,
        )


class JsonLinesWriter(ScalarWriter):
    """One JSON object per write, with `step`; flushed at once, so a killed run loses nothing."""

    def __init__(self, path: epath.Path):
        self._path = path

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        """Appends {"step": ..., name: value, ...}; non-finite values become null."""
        record = {"step": step}
        for name, value in scalars.items():
            record[name] = float(value) if np.isfinite(value) else None
        with naming(self._path), self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def truncate_metrics(workdir: epath.Path, step: int) -> None:
    """Drops the JSON lines of steps that a resumed run is about to compute again."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return
    kept = [json.dumps(record) for record in read_metrics(workdir) if record["step"] <= step]
    atomic_write_bytes(path, "".join(f"{line}\n" for line in kept).encode())


def read_metrics(workdir: epath.Path) -> list[dict]:
    """Records of metrics.jsonl, each with its `step`; none where there is no such file.

    A line that is cut off, as the last one of a run that was killed while writing, is left out, and
    so is a corrupt one, with a warning.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    records, lines = [], path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, f"{path}, line {number}")
            if type(record.get("step")) is not int:
                raise ValueError(f"{path}, line {number}: expected an integer step")
        except ValueError as error:
            if number < len(lines):
                logger.warning("%s; this line is left out", error)
            continue
        records.append(record)
    return records


def format_seconds(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
