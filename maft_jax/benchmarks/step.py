"""The training step, as training compiles, shards and donates it: time, arithmetic, memory."""

import dataclasses
import time

import jax
import numpy as np

from input_pipeline.device_batches import GlobalBatches
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.train_pipeline import make_train_dataset
from maft_jax.benchmarks import torch_step
from maft_jax.benchmarks.device_peaks import peak_flops
from maft_jax.benchmarks.drawn_data import draw_batch, draw_text, num_classes
from maft_jax.benchmarks.models import BenchmarkModel
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.timing import (
    Timings,
    process_peak_bytes,
    ratio_of_neighbours,
    time_in_turns,
    time_runs,
)
from maft_jax.config import Config
from maft_jax.models.array_types import Batch
from maft_jax.models.flops import model_flops_utilization
from maft_jax.models.text_classifier import cached_class_embeddings
from maft_jax.proposals.precompute_job import cache_dir
from maft_jax.runtime import sharding
from maft_jax.training.step_setup import make_step_setup, tuned_tree
from maft_jax.training.teacher import teacher_fields
from maft_jax.training.training_data import open_training_data, train_geometry


@dataclasses.dataclass(frozen=True)
class StepData:
    """What a step reads beside the weights, on the host or on the devices."""

    batch: Batch
    text: np.ndarray | jax.Array
    """Class embeddings [c, e]."""
    described: str


class StepProgram:
    """The compiled step with its state, which every call moves one step on."""

    def __init__(self, model: BenchmarkModel, data: StepData):
        setup = make_step_setup(model.config, model.clip.vision, model.mesh)
        tree = tuned_tree(model.config)
        begun = tree.begin(model.clip.vision, model.parameters["visual"])
        state, frozen = setup.place_state(begun), setup.frozen(begun)
        step = setup.jitted(state, frozen)
        self._state = state
        self._fixed = (
            model.on_devices(frozen),
            jax.device_put(data.text, sharding.replicated(model.mesh)),
        )
        self._batch = jax.device_put(data.batch, sharding.batch_sharding(model.mesh))
        started = time.perf_counter()
        self._compiled = step.lower(self._state, *self._fixed, self._batch).compile()
        self.compile_seconds = time.perf_counter() - started

    def dispatch(self, batch: Batch | None = None) -> dict:
        """Starts a step, and returns its metrics while it may still run.

        Args:
            batch: on the devices, of the same shapes; None for the one that it began with.
        """
        batch = self._batch if batch is None else batch
        self._state, metrics = self._compiled(self._state, *self._fixed, batch)
        return metrics

    def run(self) -> dict:
        """A step from its start to its end on the devices."""
        metrics = self.dispatch()
        jax.block_until_ready((self._state, metrics))
        return metrics

    def run_many(self, count: int) -> None:
        """Steps that are started as fast as the devices take them, as in training."""
        for _ in range(count):
            metrics = self.dispatch()
        jax.block_until_ready((self._state, metrics))

    def memory(self) -> dict:
        """Bytes per device, by the compiler."""
        found = self._compiled.memory_analysis()
        parts = {
            name: getattr(found, f"{name}_size_in_bytes")
            for name in ("argument", "output", "alias", "temp")
        }
        total = parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]
        return {**parts, "total": total}


def measure_step(model: BenchmarkModel, options: BenchmarkOptions) -> dict:
    """Measures the step, with options.compare_torch beside the rendition of the official one.

    Raises:
        ValueError: data or settings cannot work, or there is nothing to compare with.
    """
    config = model.config
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, model.mesh)
    if options.compare_torch:
        torch_step.check_comparable(model)
    model = dataclasses.replace(model, config=_long_enough(config, options))
    data = configured_data(model) if options.configured_data else _drawn_data(model)
    program = StepProgram(model, data)
    first_loss = float(program.run()["loss"])
    for _ in range(options.warmup):
        program.run()
    pipelined = time_runs(lambda: program.run_many(options.steps), 1).seconds[0] / options.steps
    # Before PyTorch, which would add to what the process needs.
    memory = {
        "compiled_bytes_per_device": program.memory(),
        "device_peak_bytes": model.peak_bytes(),
        "process_peak_bytes": process_peak_bytes(),
    }
    compared = {}
    if options.compare_torch:
        blocked, compared = _beside_torch(program, model, data, options, first_loss)
    else:
        blocked = time_runs(program.run, options.steps)
    return {
        "weights": model.weights,
        "data": data.described,
        "batch_size": config.batch_size,
        "num_proposals": data.batch.proposals.shape[1],
        "image_size": config.model.image_size,
        "mask_start_layer": config.model.mask_start_layer,
        "compute_dtype": config.model.compute_dtype,
        "mesh": dict(model.mesh.shape),
        "compile_seconds": program.compile_seconds,
        "first_loss": first_loss,
        "blocked": blocked.summary(config.batch_size),
        "pipelined": {
            "seconds_per_step": pipelined,
            "images_per_second": config.batch_size / pipelined,
            "steps": options.steps,
        },
        "arithmetic": _arithmetic(model, data, blocked, pipelined, options.peak_flops),
        "memory": memory,
        **compared,
    }


def _beside_torch(program, model, data, options, first_loss) -> tuple[Timings, dict]:
    official = torch_step.OfficialProgram(model, data.batch, data.text)
    loss = official.run()
    for _ in range(options.warmup):
        official.run()
    ours, theirs = time_in_turns(program.run, official.run, options.steps)
    return ours, {
        "torch": {
            **official.describe(),
            "blocked": theirs.summary(model.config.batch_size),
            "ratio": ratio_of_neighbours(ours, theirs),
            "first_loss": loss,
            "loss_difference": abs(first_loss - loss),
        }
    }


def _long_enough(config: Config, options: BenchmarkOptions) -> Config:
    """With a schedule that does not end before the benchmark does."""
    num_steps = max(config.num_steps, 2 * (1 + options.warmup + options.steps))
    return dataclasses.replace(config, num_steps=num_steps)


def _drawn_data(model: BenchmarkModel) -> StepData:
    count = num_classes(model.config)
    text = draw_text(count, model.clip.vision.embed_dim)
    return StepData(draw_batch(model.config), text, f"random, {count} classes")


def configured_data(model: BenchmarkModel) -> StepData:
    """The first batch that training would read, on the devices."""
    config = model.config
    source = open_training_data(config)
    text = cached_class_embeddings(
        model.clip.text,
        model.parameters["text"],
        source.class_names,
        config.data.templates,
        cache_dir(config.data),
    )
    dataset = make_train_dataset(
        source,
        global_batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        geometry=train_geometry(config.data),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        per_example=teacher_fields(config, model.clip, model.parameters, source, model.mesh),
    )
    batches = GlobalBatches(NumpyBatches(dataset), sharding.batch_sharding(model.mesh))
    batch = Batch(**next(batches))
    batches.close()
    described = f"{config.data.dataset} {config.data.split}, {len(source.class_names)} classes"
    return StepData(batch, text, described)


def _arithmetic(
    model: BenchmarkModel,
    data: StepData,
    blocked: Timings,
    pipelined: float,
    given_peak: float | None,
) -> dict:
    """By formula; null where it does not count the step that is configured."""
    config, device = model.config, model.device
    peak = given_peak or peak_flops(device.device_kind, config.model.compute_dtype)
    if (
        config.method != "maft"
        or not config.loss.distillation_weight
        or (config.optimizer.trainable != model.clip.vision.default_trainable)
    ):
        flops = None
    else:
        flops = model.clip.vision.step_flops(
            config.masking,
            data.batch.proposals.shape[1],
            teacher=not config.loss.cached_teacher,
        )

    def utilization(seconds: float) -> float | None:
        if flops is None or peak is None:
            return None
        total = flops * config.batch_size
        return model_flops_utilization(total, seconds, peak * model.mesh.size)

    return {
        "flops_per_image": flops,
        "peak_flops_per_device": peak,
        "mfu_blocked": utilization(blocked.percentile(50)),
        "mfu_pipelined": utilization(pipelined),
    }
