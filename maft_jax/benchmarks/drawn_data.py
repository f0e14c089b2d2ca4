"""Data that is drawn on the spot: benchmarks need the shapes of real data, not its content."""

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import PreparedExample, proposal_grid_size
from input_pipeline.transforms import scaled_size
from maft_jax.config import Config
from maft_jax.models.array_types import Batch
from maft_jax.training.training_data import batch_shapes

PHOTO_SIZE = (480, 640)
"""Height and width of the usual photograph."""

MAX_CLASSES_PER_IMAGE = 24
"""Room in a batch; as test_flops has it for COCO-Stuff."""
CLASSES_PER_IMAGE = 4

_CLASSES_OF_A_FOLDER = 171


def num_classes(config: Config) -> int:
    """Of the data set that the configuration names; a folder of one's own counts as COCO-Stuff."""
    spec = SPECS.get(config.data.dataset)
    return spec.num_classes if spec else _CLASSES_OF_A_FOLDER


def draw_text(count: int, embed_dim: int) -> Float32[np.ndarray, "c e"]:
    """Normalised class embeddings."""
    text = np.random.default_rng(1).normal(size=(count, embed_dim)).astype(np.float32)
    return text / np.linalg.norm(text, axis=-1, keepdims=True)


def draw_batch(config: Config) -> Batch:
    """A training batch on the host: noise, and four classes in the quarters of every image."""
    rng = np.random.default_rng(0)
    shapes = batch_shapes(config, MAX_CLASSES_PER_IMAGE, num_classes(config))
    batch_size, size, _ = shapes.label_map.shape
    y, x = np.mgrid[:size, :size] >= size // 2
    present = np.full(shapes.present_classes.shape, -1, np.int32)
    present[:, :CLASSES_PER_IMAGE] = np.arange(CLASSES_PER_IMAGE)
    return Batch(
        image=rng.integers(0, 256, shapes.image.shape, np.uint8),
        label_map=np.repeat((2 * y + x).astype(np.int32)[None], batch_size, axis=0),
        present_classes=present,
        proposals=rng.integers(0, 256, shapes.proposals.shape, np.uint8),
        proposal_valid=np.ones(shapes.proposal_valid.shape, bool),
        teacher_probabilities=_draw_probabilities(rng, shapes.teacher_probabilities),
    )


def _draw_probabilities(rng: np.random.Generator, shape: jax.ShapeDtypeStruct | None):
    """Of the frozen CLIP, where they are read instead of computed."""
    if shape is None:
        return None
    return rng.dirichlet(np.ones(shape.shape[1]), shape.shape[0]).astype(np.float32)


def draw_example(config: Config) -> PreparedExample:
    """A photograph of noise with as many proposals as configured: blobs, as generators make."""
    rng = np.random.default_rng(0)
    return PreparedExample(
        "drawn",
        rng.integers(0, 256, (*PHOTO_SIZE, 3), np.uint8),
        np.zeros(PHOTO_SIZE, np.int32),
        _draw_blobs(rng, config.proposals.num_proposals, _stored_grid(config)),
        np.linspace(1, 0, config.proposals.num_proposals, dtype=np.float32),
    )


def _stored_grid(config: Config) -> tuple[int, int]:
    """So that evaluation does not resample them."""
    short_side, long_side = config.evaluation.short_side, config.evaluation.max_long_side
    scale = min(short_side / min(PHOTO_SIZE), long_side / max(PHOTO_SIZE))
    return proposal_grid_size(*scaled_size(PHOTO_SIZE, scale))


def _draw_blobs(
    rng: np.random.Generator, count: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "n h w"]:
    y, x = np.mgrid[: size[0], : size[1]]
    centers = rng.random((count, 2, 1, 1)) * np.array(size)[:, None, None]
    radius = rng.uniform(0.05, 0.4, (count, 1, 1)) * size[0]
    distance = np.hypot(y - centers[:, 0], x - centers[:, 1])
    masks = 255 / (1 + np.exp(np.clip((distance - radius) / 2, -50, 50)))
    return masks.astype(np.uint8)
