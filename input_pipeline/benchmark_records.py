"""Data for benchmarks: real photographs at 640x480, with noise, label maps and proposals."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from jaxtyping import Int64, UInt8
from PIL import Image, ImageFilter
from skimage.segmentation import slic

from input_pipeline.records.proposal_records import ProposalRecord, Provenance
from input_pipeline.records.record_shards import ShardWriter, shard_stem, write_dataset_file

SIZE = (640, 480)
NUM_CLASSES = 171

_CLASS_NAMES = tuple(f"class {i}" for i in range(NUM_CLASSES))
_JPEG_QUALITY = 92
_NOISE = 4.0  # Of a sensor, which resizing removed; JPEG files have the size of real ones with it.
_GRID = (160, 120)


def write_benchmark_records(
    folder: str, num_images: int, num_proposals: int, tick: Callable[[], None] = lambda: None
) -> None:
    """Writes a record set of one shard, the same whenever it is written.

    Args:
        tick: called before every image; what it raises ends the writing.
    """
    photos = _photos()
    with ShardWriter(folder, shard_stem("train", 0, 1), key="benchmark") as shard:
        for number in range(num_images):
            tick()
            photo = photos[number % len(photos)]
            shard.add(_record(photo, number, num_proposals))
        shard.finish({})
    description = {
        "dataset": "benchmark",
        "split": "train",
        "class_names": list(_CLASS_NAMES),
        "unseen_classes": [],
        "num_examples": num_images,
        "num_shards": 1,
        "recipe": {},
    }
    write_dataset_file(folder, description)


def write_benchmark_folder(root: str, num_images: int) -> None:
    """Writes the same photographs as images/*.jpg with annotations/*.png and classes.txt."""
    folder, photos = Path(root), _photos()
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(_CLASS_NAMES) + "\n")
    for number in range(num_images):
        rng = np.random.default_rng(number)
        image, _, label_map = _noisy_photo(photos[number % len(photos)], rng)
        image.save(folder / "images" / f"photo_{number:04d}.jpg", quality=_JPEG_QUALITY)
        label_map.save(folder / "annotations" / f"photo_{number:04d}.png")


def _photos() -> list[Image.Image]:
    photos = (
        skimage.data.astronaut(),
        skimage.data.coffee(),
        skimage.data.chelsea(),
        skimage.data.rocket(),
    )
    return [Image.fromarray(photo).convert("RGB") for photo in photos]


def _noisy_photo(
    photo: Image.Image, rng: np.random.Generator
) -> tuple[Image.Image, Int64[np.ndarray, "h w"], Image.Image]:
    """The photograph at SIZE, its regions on the proposals' grid, and its label map at SIZE."""
    pixels = np.asarray(photo.resize(SIZE, Image.Resampling.BICUBIC), float)
    pixels = np.clip(pixels + rng.normal(0, _NOISE, (*pixels.shape[:2], 1)), 0, 255)
    image = Image.fromarray(pixels.astype(np.uint8))
    small = np.asarray(image.resize(_GRID, Image.Resampling.BICUBIC))
    regions = slic(small, n_segments=100, compactness=20, start_label=0)
    classes = rng.integers(0, NUM_CLASSES, 12)[rng.integers(0, 12, regions.max() + 1)]
    label_map = Image.fromarray(classes[regions].astype(np.uint8))
    return image, regions, label_map.resize(SIZE, Image.Resampling.NEAREST)


def _record(photo: Image.Image, number: int, num_proposals: int) -> ProposalRecord:
    rng = np.random.default_rng(number)
    image, regions, label_map = _noisy_photo(photo, rng)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return ProposalRecord(
        example_id=f"photo {number}",
        image_bytes=encoded.getvalue(),
        image_size=SIZE[::-1],
        label_map=np.asarray(label_map).astype(np.int32),
        proposals=np.stack([_proposal(regions, rng) for _ in range(num_proposals)]),
        scores=np.linspace(1, 0, num_proposals, dtype=np.float32),
        provenance=Provenance("benchmark", "none", "none", "benchmark"),
    )


def _proposal(
    regions: Int64[np.ndarray, "h w"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """One to six regions with soft edges."""
    chosen = rng.choice(regions.max() + 1, rng.integers(1, 7))
    mask = Image.fromarray(np.isin(regions, chosen).astype(np.uint8) * 255)
    return np.asarray(mask.filter(ImageFilter.BoxBlur(1)))
