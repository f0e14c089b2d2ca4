"""Time and memory of inference: this framework against the plain PyTorch rendition.

    python -m tests.torch_reference.benchmark_inference --num_classes=20,171,847

Same weights (random ViT-B/16), same image and proposals, same machine, one process; the two take
turns, and the table has medians and the median of the ratios of neighbours. Both start from the
resized image and its stored proposals in memory, and end with a label and a score for every native
pixel. Memory is the peak of a process that does one of the two alone, libraries and compilation
included; for it, the file runs itself with --memory_of.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

MASK_START_LAYER, DIVISOR, BUCKET = 8, 32, 64
SYSTEMS = ("this", "torch")


def round_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return tuple(-(-side // multiple) * multiple for side in size)


def random_inputs(options) -> tuple[np.ndarray, np.ndarray]:
    """A resized image and its proposals: blobs, as generators make them."""
    rng = np.random.default_rng(0)
    height, width = options.resized
    grid_h, grid_w = -(-height // 4), -(-width // 4)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[:grid_h, :grid_w]
    count = options.num_proposals
    centers = rng.random((count, 2, 1, 1)) * np.array([grid_h, grid_w])[:, None, None]
    radius = rng.uniform(0.05, 0.4, (count, 1, 1)) * grid_h
    distance = np.hypot(y - centers[:, 0], x - centers[:, 1])
    masks = 255 / (1 + np.exp(np.clip((distance - radius) / 2, -50, 50)))
    return image, masks.astype(np.uint8)


def random_text(num_classes: int, embed_dim: int) -> np.ndarray:
    text = np.random.default_rng(1).normal(size=(num_classes, embed_dim)).astype(np.float32)
    return text / np.linalg.norm(text, axis=-1, keepdims=True)


def make_ours(options, num_classes: int, parameters=None) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    from maft_jax.inference import InferenceSpec, Segmenter
    from maft_jax.models.clip import CLIP_SIZES, random_parameters
    from maft_jax.models.ip_clip import IPClip

    config = CLIP_SIZES[options.size]
    parameters = random_parameters(config) if parameters is None else parameters
    encoder = IPClip(config.vision, mask_start_layer=MASK_START_LAYER)
    model = Segmenter(InferenceSpec(encoder, (options.image_size,) * 2))
    visual = jax.tree.map(jnp.asarray, parameters["visual"])
    text = jnp.asarray(random_text(num_classes, config.vision.embed_dim))
    image, masks = random_inputs(options)

    def in_array(array, shape):
        out = np.zeros(shape, array.dtype)
        out[tuple(map(slice, array.shape))] = array
        return out[None]

    height, width = round_up(options.resized, BUCKET)
    batch = {
        "image": in_array(image, (height, width, 3)),
        "image_size": np.array([options.resized], np.int32),
        "padded_size": np.array([round_up(options.resized, DIVISOR)], np.int32),
        "label_map": np.zeros((1, *round_up(options.native, BUCKET)), np.int32),
        "label_size": np.array([options.native], np.int32),
        "proposals": in_array(masks, (len(masks), height // 4, width // 4)),
        "proposal_grid": np.array([masks.shape[1:]], np.int32),
        "proposal_valid": np.ones((1, len(masks)), bool),
    }
    batch = jax.tree.map(jnp.asarray, batch)

    def run() -> np.ndarray:
        probabilities = model.class_probabilities(visual, text, batch)
        pixels = model.label_maps(probabilities, batch)
        label_map, _ = np.asarray(pixels.label_map[0]), np.asarray(pixels.score[0])
        return label_map[: options.native[0], : options.native[1]]

    return run


def make_torch(options, num_classes: int, tower=None) -> Callable[[], np.ndarray]:
    import torch

    from maft_jax.benchmarks.pytorch.official_inference import segment
    from maft_jax.benchmarks.pytorch.openai_clip import ImageTower

    if tower is None:  # memory does not depend on what the weights are
        tower = ImageTower(width=768, layers=12, patch_size=16, image_size=224, embed_dim=512)
    image, masks = map(torch.tensor, random_inputs(options))
    text = torch.tensor(random_text(num_classes, tower.proj.shape[1]))
    padded = round_up(options.resized, DIVISOR)

    def run() -> np.ndarray:
        _, labels = segment(
            tower,
            text,
            image,
            masks,
            padded,
            options.native,
            clip_size=(options.image_size,) * 2,
            start_layer=MASK_START_LAYER,
        )
        return labels.numpy()

    return run


def same_weights(options):
    """Parameters for this framework, and the tower of PyTorch with the same."""
    import jax
    import torch

    from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict
    from maft_jax.convert.openai import to_openai
    from maft_jax.models.clip import CLIP_SIZES, random_parameters

    parameters = jax.tree.map(np.asarray, random_parameters(CLIP_SIZES[options.size]))
    tensors = {name: torch.tensor(value) for name, value in to_openai(parameters).items()}
    return parameters, clip_from_state_dict(tensors).visual


def seconds(run: Callable[[], np.ndarray]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def own_peak_gigabytes() -> float:
    """From Linux, whose getrusage counts what the parent process had."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def peak_gigabytes(system: str, num_classes: int) -> float:
    """Of a fresh process that labels the image twice."""
    command = [sys.executable, "-m", "tests.torch_reference.benchmark_inference", *sys.argv[1:]]
    command += [f"--memory_of={system}", f"--num_classes={num_classes}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse_options():
    def size(text: str) -> tuple[int, int]:
        height, width = map(int, text.split("x"))
        return height, width

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_classes", default="20,171,847")
    parser.add_argument("--num_proposals", type=int, default=100)
    parser.add_argument("--size", default="ViT-B-16")
    parser.add_argument("--image_size", type=int, default=480)
    parser.add_argument("--resized", type=size, default=(640, 853), help="HEIGHTxWIDTH")
    parser.add_argument("--native", type=size, default=(480, 640), help="HEIGHTxWIDTH")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory_of", choices=SYSTEMS)
    options = parser.parse_args()
    options.num_classes = [int(number) for number in options.num_classes.split(",")]
    return options


def main() -> None:
    options = parse_options()
    if options.memory_of:
        make = {"this": make_ours, "torch": make_torch}[options.memory_of]
        run = make(options, options.num_classes[0])
        run(), run()
        print(own_peak_gigabytes())
        return
    parameters, tower = same_weights(options)
    print(options)
    print(
        "| classes | this, images/s | PyTorch, images/s | this / PyTorch | this, GB | PyTorch, GB "
        "| labels that differ |\n|---|---|---|---|---|---|---|"
    )
    for num_classes in options.num_classes:
        ours = make_ours(options, num_classes, parameters)
        official = make_torch(options, num_classes, tower)
        differ = np.mean(ours() != official())  # the first call also compiles
        pairs = [(seconds(ours), seconds(official)) for _ in range(options.repeats)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        memory = " | ".join(f"{peak_gigabytes(system, num_classes):.2f}" for system in SYSTEMS)
        print(
            f"| {num_classes} | {1 / mine:.2f} | {1 / theirs:.2f} | {ratio:.2f} | {memory} | "
            f"{100 * differ:.3f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
