"""Labelling images: the programs of evaluation on one batch, or evaluation of whole data sets."""

import multiprocessing
import tempfile

import jax
import numpy as np
from etils import epath

from input_pipeline.eval_pipeline import make_eval_batch
from maft_jax.benchmarks import torch_inference
from maft_jax.benchmarks.drawn_data import draw_example, draw_text, num_classes
from maft_jax.benchmarks.models import BenchmarkModel, load_model
from maft_jax.benchmarks.options import BenchmarkOptions
from maft_jax.benchmarks.timing import (
    process_peak_bytes,
    ratio_of_neighbours,
    seconds_of,
    time_in_turns,
    time_runs,
)
from maft_jax.benchmarks.torch_alone import peak_bytes_alone
from maft_jax.config import Config
from maft_jax.evaluators.evaluation import Evaluation, make_segmenter
from maft_jax.evaluators.protocol import EvaluationProtocol
from maft_jax.inference.segmenter import PixelLabels
from maft_jax.models.mask_reader import describe_tower
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import sharding
from maft_jax.runtime.mesh_axes import num_batch_shards


class EvaluationProgram:
    """Labels the same drawn photograph in every row of a batch, each time it runs."""

    def __init__(self, model: BenchmarkModel):
        config = model.config
        devices = num_batch_shards(model.mesh)
        self.num_images = config.evaluation.images_per_device * devices
        self.example = draw_example_batch(config)
        rows = {key: np.repeat(x, self.num_images, 0) for key, x in self.example.items()}
        self._batch = jax.device_put(rows, sharding.batch_sharding(model.mesh))
        self._tower = model.on_devices(model.tower)
        self.text = draw_text(num_classes(config), model.clip.vision.embed_dim)
        self._text = jax.device_put(self.text, sharding.replicated(model.mesh))
        self._segmenter = make_segmenter(config, model.clip, model.mesh)

    def dispatch(self) -> PixelLabels:
        """Starts a batch, and returns its labels while it may still run."""
        probabilities = self._segmenter.class_probabilities(self._tower, self._text, self._batch)
        return self._segmenter.label_maps(probabilities, self._batch)

    def run(self) -> PixelLabels:
        """A batch from its start to its end on the devices."""
        return jax.block_until_ready(self.dispatch())

    def run_many(self, count: int) -> None:
        """Batches that are started as fast as the devices take them."""
        for _ in range(count):
            labels = self.dispatch()
        jax.block_until_ready(labels)


def draw_example_batch(config: ResolvedConfig) -> dict[str, np.ndarray]:
    """A batch of one drawn photograph, with the keys of `make_eval_dataset`."""
    protocol = EvaluationProtocol.of(config)
    return make_eval_batch(draw_example(config), config.proposals.num_proposals, protocol.geometry)


def measure_evaluation(model: BenchmarkModel, options: BenchmarkOptions) -> dict:
    """Images per second of labelling, with options.compare_torch beside the rendition.

    Raises:
        ValueError: data or settings cannot work, or there is nothing to compare with.
    """
    if options.compare_torch:
        torch_inference.check_comparable(model)
    measured = (_data_sets if options.configured_data else _drawn_photographs)(model, options)
    config = model.config
    return {
        "weights": model.weights,
        "image_size": config.model.image_size,
        "mask_start_layer": config.model.mask_start_layer,
        "compute_dtype": config.model.compute_dtype,
        "mesh": dict(model.mesh.shape),
        **measured,
    }


def _drawn_photographs(model: BenchmarkModel, options: BenchmarkOptions) -> dict:
    program = EvaluationProgram(model)
    first = seconds_of(program.run)
    for _ in range(options.warmup):
        program.run()
    pipelined = time_runs(lambda: program.run_many(options.steps), 1).seconds[0] / options.steps
    process_peak = process_peak_bytes()
    compared = {}
    if options.compare_torch:
        blocked, compared = _beside_torch(model, program, options)
    else:
        blocked = time_runs(program.run, options.steps)
    return {
        "data": f"random, {len(program.text)} classes",
        "num_proposals": model.config.proposals.num_proposals,
        "batch_size": program.num_images,
        "first_run_seconds": first,
        "blocked": blocked.summary(program.num_images),
        "pipelined": {
            "seconds_per_batch": pipelined,
            "images_per_second": program.num_images / pipelined,
            "batches": options.steps,
        },
        "memory": {
            "device_peak_bytes": model.peak_bytes(),
            "process_peak_bytes": process_peak,
        },
        **compared,
    }


def _beside_torch(model, program, options):
    official = torch_inference.OfficialInference(
        model, program.example, program.text, program.num_images
    )
    theirs = official.run()
    ours = np.asarray(program.run().label_map[0])[: theirs.shape[0], : theirs.shape[1]]
    for _ in range(options.warmup):
        official.run()
    our_times, their_times = time_in_turns(program.run, official.run, options.steps)
    return our_times, {
        "torch": {
            **official.describe(),
            "blocked": their_times.summary(program.num_images),
            "ratio": ratio_of_neighbours(our_times, their_times),
            "labels_that_differ": float(np.mean(ours != theirs)),
        }
    }


def _data_sets(model: BenchmarkModel, options: BenchmarkOptions) -> dict:
    """As training and configs/eval_only.py evaluate: reading, labelling, counting."""
    if not model.config.evaluation.has_data_sets:
        raise ValueError(
            "--what=evaluation --data=configured: no data set; say where one lies, such as "
            "--config.evaluation.roots.voc2012=VOC2012, or leave --data=configured away"
        )
    evaluation = Evaluation(model.config, model.clip, model.parameters["text"], model.mesh)
    tower = model.on_devices(model.tower)
    origin = describe_tower(model.tower)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluation.evaluate(tower, origin, epath.Path(folder))

    first, seconds = seconds_of(run), seconds_of(run)
    num_images = sum(len(data.source) for data in evaluation.data_sets)
    return {
        "data": ", ".join(data.name for data in evaluation.data_sets),
        "first_run_seconds": first,
        "whole": {
            "images": num_images,
            "seconds": seconds,
            "images_per_second": num_images / seconds,
        },
        "memory": {
            "device_peak_bytes": model.peak_bytes(),
            "process_peak_bytes": process_peak_bytes(),
        },
    }


def peaks_of_processes(model: BenchmarkModel) -> dict[str, int | None]:
    """Most memory of processes that label a batch twice, one with this program, one with PyTorch.

    Libraries and compilation included; on a CPU, where the two otherwise share a process.
    """
    config, vision = model.config, model.clip.vision
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ours = pool.apply(_peak_of_this, (config, model.mesh.size))
    inputs = torch_inference.official_inputs(draw_example_batch(config))
    arrays = {name: inputs.pop(name) for name in ("image", "proposals")}
    arrays["text"] = draw_text(num_classes(config), vision.embed_dim)
    tower = ("width", "layers", "patch_size", "image_size", "embed_dim")
    size = config.model.image_size
    theirs = peak_bytes_alone(
        arrays,
        {name: getattr(vision, name) for name in tower},
        inputs
        | {
            "clip_size": (size, size),
            "start_layer": config.model.mask_start_layer,
            "bfloat16": config.model.compute_dtype == "bfloat16",
        },
    )
    return {"this": ours, "torch": theirs}


def _peak_of_this(config: Config, num_devices: int) -> int | None:
    """In a process that has not asked for devices, which get the number that the mesh is for."""
    jax.config.update("jax_num_cpu_devices", num_devices)
    program = EvaluationProgram(load_model(config))
    program.run()
    program.run()
    return process_peak_bytes()
