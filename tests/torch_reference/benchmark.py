"""Time per training step: this framework against the plain PyTorch rendition of the official one.

    python -m tests.torch_reference.benchmark --num_proposals=1,25,100

Same weights (random ViT-B/16), same batch, same machine, one process; the two take turns, and the
table has medians and the median of the ratios of neighbours. Both start from 640x640 crops with
all data in memory; PyTorch gets its proposals already at full resolution.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from maft_jax import optimizer, sharding, train_step
from maft_jax.array_types import Batch
from maft_jax.benchmarks.pytorch.official_step import OfficialStep
from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict
from maft_jax.config import LossConfig, MeshConfig, OptimizerConfig
from maft_jax.convert.openai import to_openai
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.ip_clip import IPClip
from maft_jax.models.preprocess import clip_input
from maft_jax.models.resize import resize
from maft_jax.objective import StepSpec
from maft_jax.train_state import init_train_state

CROP, NUM_CLASSES, MASK_START_LAYER, NUM_STEPS = 640, 171, 8, 1000


def random_batch(batch_size: int, num_proposals: int) -> Batch:
    """Random pixels and proposals; every image has four classes, in quarters."""
    rng = np.random.default_rng(0)
    labels = np.arange(4, dtype=np.int32).reshape(2, 2).repeat(CROP // 2, 0).repeat(CROP // 2, 1)
    batch = Batch(
        image=rng.integers(0, 256, (batch_size, CROP, CROP, 3), np.uint8),
        label_map=np.repeat(labels[None], batch_size, axis=0),
        present_classes=np.tile(np.arange(4, dtype=np.int32), (batch_size, 1)),
        proposals=rng.integers(0, 256, (batch_size, num_proposals, 160, 160), np.uint8),
        proposal_valid=np.ones((batch_size, num_proposals), bool),
    )
    return jax.tree.map(jnp.asarray, batch)


def random_text(embed_dim: int) -> np.ndarray:
    text = np.random.default_rng(1).normal(size=(NUM_CLASSES, embed_dim)).astype(np.float32)
    return text / np.linalg.norm(text, axis=-1, keepdims=True)


def make_ours(parameters: dict, batch: Batch, size: str, image_size: int) -> Callable[[], float]:
    vision = CLIP_SIZES[size].vision
    encoder = IPClip(vision, mask_start_layer=MASK_START_LAYER)
    spec = StepSpec(encoder, LossConfig(), (image_size, image_size))
    tx = optimizer.make_optimizer(OptimizerConfig(), NUM_STEPS)
    visual = jax.tree.map(jnp.asarray, parameters["visual"])
    state = init_train_state(visual, OptimizerConfig().trainable, tx)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    step = train_step.make_train_step(spec, tx, mesh, state, visual)
    text = jnp.asarray(random_text(vision.embed_dim))

    def run() -> float:
        nonlocal state
        state, metrics = step(state, visual, text, batch)
        return float(jax.block_until_ready(metrics)["loss"])

    return run


def make_official(
    parameters: dict, batch: Batch, size: str, image_size: int
) -> Callable[[], float]:
    tensors = {name: torch.tensor(value) for name, value in to_openai(parameters).items()}
    student, teacher = clip_from_state_dict(tensors), clip_from_state_dict(tensors)
    text = random_text(CLIP_SIZES[size].vision.embed_dim)
    text = torch.tensor(np.concatenate([text, text[:1]]))  # the non-object row, never used
    step = OfficialStep(
        student.visual, teacher.visual, MASK_START_LAYER, text, 1e-5, NUM_STEPS, 1e-4, 0.1
    )
    images = np.asarray(clip_input(batch.image, (image_size, image_size)))
    images = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    masks = batch.proposals.astype(jnp.float32) / 255
    masks = torch.tensor(np.asarray(resize(masks, (CROP, CROP), axes=(2, 3), align_corners=True)))
    labels = [torch.arange(4)] * len(images)
    truth = [
        torch.tensor(np.asarray(label_map))[None] == torch.arange(4)[:, None, None]
        for label_map in batch.label_map
    ]
    return lambda: float(step.step(images, masks, labels, truth)["loss"])


def seconds(run: Callable[[], float]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_proposals", default="1,25,100")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--size", default="ViT-B-16", choices=sorted(set(CLIP_SIZES) - {"tiny"}))
    parser.add_argument("--image_size", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sizes = (arguments.size, arguments.image_size)
    parameters = jax.tree.map(np.asarray, random_parameters(CLIP_SIZES[arguments.size]))
    print(
        f"{arguments}, jax {jax.__version__}, torch {torch.__version__}, float32, "
        f"{jax.devices()[0].device_kind}, {torch.get_num_threads()} threads"
    )
    print("| proposals | this, s/step | PyTorch, s/step | PyTorch / this | loss differs by |")
    print("|---|---|---|---|---|")
    for num_proposals in map(int, arguments.num_proposals.split(",")):
        batch = random_batch(arguments.batch_size, num_proposals)
        ours = make_ours(parameters, batch, *sizes)
        official = make_official(parameters, batch, *sizes)
        difference = abs(ours() - official())  # the first call also compiles
        pairs = [(seconds(ours), seconds(official)) for _ in range(arguments.repeats)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"| {num_proposals} | {mine:.2f} | {theirs:.2f} | {ratio:.2f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
