"""Measures the training pipeline: images per second and core, and where the time goes.

The real pipeline runs, from records on disk to batches, with the training geometry and the colour
jitter; docs/input_pipeline.md has results, `maft_jax.cli.benchmark_input` is the command.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

from input_pipeline import train_pipeline, transforms
from input_pipeline.process_batches import ProcessBatches
from input_pipeline.records import proposal_records, record_source
from input_pipeline.records.record_source import RecordSource
from input_pipeline.train_pipeline import TrainGeometry, read_train_batches

STAGES: dict[str, tuple[ModuleType, str]] = {
    "record: read, checksums": (record_source, "read_data"),
    "record: image (JPEG)": (record_source, "read_image"),
    "record: label map (PNG)": (proposal_records, "_decode_label_map"),
    "record: masks (zstd)": (proposal_records, "decode_masks"),
    "geometry of the image": (transforms, "place_image"),
    "colour jitter": (transforms, "jitter_colors"),
    "geometry of the label map": (transforms, "place_label_map"),
    "geometry of the proposals": (transforms, "place_proposals"),
    "classes present": (train_pipeline, "_classes_present"),
}
REST = "batching, padding, all else"

_START_STEP = 10_000_000
_DEFAULT_GEOMETRY = TrainGeometry()


def measure(
    folder: str,
    batch_size: int,
    num_batches: int,
    num_workers: int,
    geometry: TrainGeometry = _DEFAULT_GEOMETRY,
    tick: Callable[[], None] = lambda: None,
    num_processes: int = 1,
    step_seconds: float = 0.0,
) -> dict:
    """The numbers of `describe`; times of stages are of one thread, in CPU time.

    Args:
        tick: called after every batch; what it raises ends the measurement.
        num_processes: that read, with `num_workers` threads together; 1 = threads of this one.
        step_seconds: that pass after every batch before the next is asked for, as a step would.
    """
    started = time.monotonic()
    source = RecordSource(folder)
    opened = time.monotonic()

    def batches(workers: int, processes: int) -> Iterator[dict]:
        return read_train_batches(
            source,
            num_processes=processes,
            global_batch_size=batch_size,
            seed=0,
            start_step=_START_STEP,
            geometry=geometry,
            num_workers=workers,
        )

    opening, stream = time.monotonic(), batches(num_workers, num_processes)
    next(stream)
    first_batch = time.monotonic() - opening
    _warm_up(stream)
    wall, cpu, waited = _timed(stream, num_batches, tick, step_seconds)
    with _stages_timed() as seconds:
        stream = batches(1, 1)
        _warm_up(stream)
        seconds.clear()
        _, all_of_it, _ = _timed(stream, num_batches, tick)
    num_images = num_batches * batch_size
    stages = {name: 1e3 * seconds[name] / num_images for name in STAGES}
    stages[REST] = 1e3 * all_of_it / num_images - sum(stages.values())
    return {
        "images": num_images,
        "workers": num_workers,
        "processes": num_processes,
        "images_per_second": num_images / wall,
        "images_per_second_per_core": num_images / cpu,
        "seconds_to_open_records": opened - started,
        "seconds_to_first_batch": first_batch,
        "first_step": _START_STEP,
        "step_seconds": step_seconds,
        "share_waited_for_input": waited / wall,
        "stage_milliseconds_per_image": stages,
    }


def describe(results: dict) -> str:
    stages = results["stage_milliseconds_per_image"]
    total = sum(stages.values())
    rows = [f"{name:30}{ms:8.2f}{100 * ms / total:8.0f} %" for name, ms in stages.items()]
    step, waited = results["step_seconds"], results["share_waited_for_input"]
    after = f", {1e3 * step:.0f} ms after each batch, {waited:.1%} waited" if step else ""
    return "\n".join(
        (
            f"{results['images_per_second']:.1f} images/s with {results['workers']} workers in "
            f"{results['processes']} processes{after} (wall clock; other programs slow it down)",
            f"{results['images_per_second_per_core']:.1f} images/s per core (CPU time)",
            f"{results['seconds_to_open_records']:.2f} s to open the records, "
            f"{results['seconds_to_first_batch']:.2f} s to the first batch at step "
            f"{results['first_step']}",
            "",
            f"{'one worker':30}{'ms/image':>8}",
            *rows,
            f"{'all':30}{total:8.2f}",
        )
    )


def _warm_up(stream: Iterator[dict]) -> None:
    """From then on a batch is computed for each that is taken."""
    for _ in range(4):
        next(stream)


def _timed(
    stream: Iterator[dict], num_batches: int, tick: Callable[[], None], step_seconds: float = 0.0
) -> tuple[float, float, float]:
    """Wall-clock, CPU and waited seconds of some batches; closes the stream."""
    wall, cpu, waited = time.monotonic(), _cpu_seconds(stream), 0.0
    for _ in range(num_batches):
        asked = time.monotonic()
        next(stream)
        waited += time.monotonic() - asked
        time.sleep(step_seconds)
        tick()
    wall, cpu = time.monotonic() - wall, _cpu_seconds(stream) - cpu
    stream.close()
    return wall, cpu, waited


def _cpu_seconds(stream: Iterator[dict]) -> float:
    """Of this process and of those that read for it."""
    ids = stream.process_ids if isinstance(stream, ProcessBatches) else []
    # Linux numbers the clocks of processes so; Python has no name for it.
    return time.process_time() + sum(time.clock_gettime(~number << 3 | 2) for number in ids)


@contextmanager
def _stages_timed() -> Iterator[dict[str, float]]:
    """Sums the CPU seconds of each stage while the pipeline runs with one worker."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.thread_time() - started

        return call

    with ExitStack() as patches:
        for name, (module, attribute) in STAGES.items():
            wrapped = timed(name, getattr(module, attribute))
            patches.enter_context(mock.patch.object(module, attribute, wrapped))
        yield seconds


if __name__ == "__main__":  # the command of version 0.1
    _COMMAND = "maft_jax.cli.benchmark_input"
    print(f"python -m input_pipeline.benchmark is python -m {_COMMAND} now", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, "-m", _COMMAND, *sys.argv[1:]])
