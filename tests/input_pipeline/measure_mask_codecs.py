"""Bytes per image and time of ways to store proposals losslessly: the tables of docs/records.md.

    python -m tests.input_pipeline.measure_mask_codecs \\
        coco=coco_stuff/images/train2017:coco_stuff/annotations/stuffthingmaps/train2017 \\
        coco=coco_stuff/images/val2017:coco_stuff/annotations/stuffthingmaps/val2017 \\
        voc=voc2012/JPEGImages:voc2012/SegmentationClass

Arguments are NAME=IMAGES:LABELS, folders whose files share their stems. Every candidate must give
the masks back bit for bit, or the script fails. The kinds of masks:

superpixels  the generator `superpixels`, 100 proposals
regions      the generator `ground_truth` with all its kinds, at most 100 proposals
confident    superpixel masks as a network might see them: sigmoids of blurred masks plus smooth
             noise, 12 below zero outside and 12 above inside, so that most pixels are 0 or 255
uncertain    the same with 6: most pixels outside are 0 to 4, most inside 251 to 255
hard         superpixel masks cut at one half: 0 and 255 alone
"""

import argparse
import io
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from jaxtyping import UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import expit
from tqdm import tqdm

from input_pipeline.examples import IGNORE, Example
from input_pipeline.image_files import read_image, read_label_map
from input_pipeline.records.mask_codec import decode_masks, encode_masks
from input_pipeline.records.proposal_records import ProposalRecord, Provenance, encode_record
from maft_jax.proposals.ground_truth import GroundTruthProposals
from maft_jax.proposals.soft_masks import soften_masks
from maft_jax.proposals.superpixels import SuperpixelProposals

NUM_PROPOSALS = 100
COCO_TRAIN_IMAGES = 118_287

Masks = UInt8[np.ndarray, "n grid_h grid_w"]


@dataclass(frozen=True)
class Candidate:
    """A way to turn masks into bytes and, with their shape, back."""

    encode: Callable[[Masks], bytes]
    decode: Callable[[bytes, tuple[int, int, int]], Masks]


def zstd(level: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    return zstandard.ZstdCompressor(level=level).compress, zstandard.ZstdDecompressor().decompress


def plain(pack, unpack) -> Candidate:
    """The masks one after the other."""
    return Candidate(
        lambda masks: pack(masks.tobytes()),
        lambda data, shape: np.frombuffer(unpack(data), np.uint8).reshape(shape),
    )


def interleaved(pack, unpack) -> Candidate:
    """All masks' values of one grid point side by side: nested masks repeat themselves there."""

    def decode(data: bytes, shape: tuple[int, int, int]) -> Masks:
        n, h, w = shape
        values = np.frombuffer(unpack(data), np.uint8).reshape(h, w, n)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    return Candidate(lambda masks: pack(masks.transpose(1, 2, 0).tobytes()), decode)


def filtered(axis: int, pack, unpack) -> Candidate:
    """XOR with the neighbour before along an axis: 0 the former proposal, 1 above, 2 left."""

    def encode(masks: Masks) -> bytes:
        first = np.zeros_like(np.take(masks, [0], axis)) if masks.size else masks
        before = np.delete(np.concatenate([first, masks], axis), -1, axis)
        return pack((masks ^ before).tobytes())

    def decode(data: bytes, shape: tuple[int, int, int]) -> Masks:
        values = np.frombuffer(unpack(data), np.uint8).reshape(shape)
        return np.bitwise_xor.accumulate(values, axis)

    return Candidate(encode, decode)


def png_tiles(level: int) -> Candidate:
    """One grey PNG, the masks below each other."""

    def encode(masks: Masks) -> bytes:
        content = io.BytesIO()
        tiles = Image.fromarray(masks.reshape(-1, masks.shape[2]))
        tiles.save(content, "png", compress_level=level)
        return content.getvalue()

    return Candidate(
        encode, lambda data, shape: np.asarray(Image.open(io.BytesIO(data))).reshape(shape)
    )


def run_lengths(pack, unpack) -> Candidate:
    """Values of runs, then their lengths (16 bits; longer runs are cut), then packed."""

    def encode(masks: Masks) -> bytes:
        flat = masks.ravel()
        cuts = np.union1d(np.flatnonzero(np.diff(flat)) + 1, np.arange(0, flat.size, 2**16 - 1))
        lengths = np.diff([*cuts, flat.size]).astype(np.uint16)
        return pack(flat[cuts].tobytes() + lengths.tobytes())

    def decode(data: bytes, shape: tuple[int, int, int]) -> Masks:
        runs = unpack(data)
        values = np.frombuffer(runs, np.uint8, len(runs) // 3)
        lengths = np.frombuffer(runs, np.uint16, offset=len(values))
        return np.repeat(values, lengths).reshape(shape)

    return Candidate(encode, decode)


def split_planes(pack, unpack) -> Candidate:
    """One bit where a mask is at least half, one where it is neither 0 nor 255, and those values.

    For hard masks the second plane is empty, and this is bit packing.
    """

    def encode(masks: Masks) -> bytes:
        flat = masks.ravel()
        soft = (flat > 0) & (flat < 255)
        return pack(
            np.packbits(flat >= 128).tobytes() + np.packbits(soft).tobytes() + flat[soft].tobytes()
        )

    def decode(data: bytes, shape: tuple[int, int, int]) -> Masks:
        stream = np.frombuffer(unpack(data), np.uint8)
        count = int(np.prod(shape))
        size = -(-count // 8)
        flat = np.unpackbits(stream[:size], count=count) * np.uint8(255)
        soft = np.flatnonzero(np.unpackbits(stream[size : 2 * size], count=count))
        flat[soft] = stream[2 * size :]
        return flat.reshape(shape)

    return Candidate(encode, decode)


def chosen() -> Candidate:
    """What input_pipeline.records.mask_codec does, its checks included."""

    def decode(data: bytes, shape: tuple[int, int, int]) -> Masks:
        length = data[0]
        return decode_masks(data[1 : 1 + length].decode(), data[1 + length :], shape)

    def encode(masks: Masks) -> bytes:
        codec, data = encode_masks(masks)
        return bytes([len(codec)]) + codec.encode() + data

    return Candidate(encode, decode)


CANDIDATES = {
    "PNG tiles, level 6": png_tiles(6),
    "zlib 1": plain(lambda data: zlib.compress(data, 1), zlib.decompress),
    "zlib 6": plain(lambda data: zlib.compress(data, 6), zlib.decompress),
    "zlib 9": plain(lambda data: zlib.compress(data, 9), zlib.decompress),
    "zstd 1": plain(*zstd(1)),
    "zstd 3": plain(*zstd(3)),
    "zstd 9": plain(*zstd(9)),
    "zstd 15": plain(*zstd(15)),
    "zstd 19": plain(*zstd(19)),
    "interleaved, zstd 3": interleaved(*zstd(3)),
    "interleaved, zstd 9": interleaved(*zstd(9)),
    "XOR left, zstd 9": filtered(2, *zstd(9)),
    "XOR above, zstd 9": filtered(1, *zstd(9)),
    "XOR former proposal, zstd 9": filtered(0, *zstd(9)),
    "run lengths": run_lengths(bytes, bytes),
    "run lengths, zstd 9": run_lengths(*zstd(9)),
    "bit planes + soft values": split_planes(bytes, bytes),
    "bit planes + soft values, zstd 9": split_planes(*zstd(9)),
    "mask_codec.py": chosen(),
}


def masks_of(example: Example) -> dict[str, Masks]:
    """The kinds of masks that are measured, for one photo."""
    size = example.image.shape[:2]
    superpixels = soften_masks(SuperpixelProposals()(example, NUM_PROPOSALS).masks, size)
    generator = GroundTruthProposals(("regions", "jittered", "unions", "parts"))
    return {
        "superpixels": superpixels,
        "regions": soften_masks(generator(example, NUM_PROPOSALS).masks, size),
        "confident": network_like(superpixels, 12),
        "uncertain": network_like(superpixels, 6),
        "hard": np.where(superpixels >= 128, np.uint8(255), np.uint8(0)),
    }


def network_like(masks: Masks, confidence: float) -> Masks:
    """Sigmoids of blurred masks plus smooth noise; `confidence` is the logit far from the edge."""
    rng = np.random.default_rng(0)
    inside = gaussian_filter(masks / np.float32(255), (0, 2, 2))
    noise = gaussian_filter(rng.standard_normal(masks.shape, np.float32), (0, 3, 3))
    logits = confidence * (2 * inside - 1) + noise / max(float(noise.std()), 1e-6)
    return np.rint(255 * expit(logits)).astype(np.uint8)


def photos(data: list[str], most_photos: int) -> Iterator[tuple[str, Example, bytes]]:
    """Name of the data, example and encoded image."""
    for argument in data:
        name, folders = argument.split("=")
        images, labels = folders.split(":")
        labelled = sorted(Path(labels).glob("*.png"))
        every = -(-len(labelled) // most_photos)
        for label_path in tqdm(labelled[::every], desc=images):
            (image_path,) = Path(images).glob(f"{label_path.stem}.*")
            values = read_label_map(label_path)
            label_map = np.where(values == 255, IGNORE, values).astype(np.int32)
            example = Example(label_path.stem, read_image(image_path), label_map)
            yield name, example, image_path.read_bytes()


def record_length(example: Example, image_bytes: bytes, masks: Masks) -> int:
    """Bytes of the whole record, its framing excluded."""
    record = ProposalRecord(
        example_id=example.example_id,
        image_bytes=image_bytes,
        image_size=example.label_map.shape,
        label_map=example.label_map,
        proposals=masks,
        scores=np.zeros(len(masks), np.float32),
        provenance=Provenance("generator", "f" * 64, "f" * 64, "maft_jax 0.1.0"),
    )
    return len(encode_record(record))


def measure(candidate: Candidate, masks: Masks) -> tuple[int, float, float]:
    """Bytes, and milliseconds of encoding and of decoding (the best of three)."""
    start = time.perf_counter()
    data = candidate.encode(masks)
    encoding = time.perf_counter() - start
    decoding = []
    for _ in range(3):
        start = time.perf_counter()
        decoded = candidate.decode(data, masks.shape)
        decoding.append(time.perf_counter() - start)
    np.testing.assert_array_equal(decoded, masks)
    return len(data), 1e3 * encoding, 1e3 * min(decoding)


def print_table(heading: list[str], rows: list[list[str]]) -> None:
    print()
    for row in (heading, ["---"] * len(heading), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", metavar="NAME=IMAGES:LABELS")
    parser.add_argument("--most_photos", type=int, default=60, help="of each folder")
    arguments = parser.parse_args()
    measured: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    lengths: dict[tuple[str, str], list[int]] = {}
    images: dict[str, list[int]] = {}
    for data, example, image_bytes in photos(arguments.data, arguments.most_photos):
        images.setdefault(data, []).append(len(image_bytes))
        for kind, masks in masks_of(example).items():
            length = record_length(example, image_bytes, masks)
            lengths.setdefault((data, kind), []).append(length)
            for name, candidate in CANDIDATES.items():
                measured.setdefault((name, kind), []).append(measure(candidate, masks))

    kinds = list(dict.fromkeys(kind for _, kind in lengths))
    print(f"\n{sum(map(len, images.values()))} photos: kB per image, ms to encode, ms to decode")
    rows = []
    for name in CANDIDATES:
        cells = []
        for kind in kinds:
            size = statistics.mean(row[0] for row in measured[name, kind]) / 1e3
            encode, decode = (statistics.median(r[i] for r in measured[name, kind]) for i in (1, 2))
            cells.append(f"{size:.1f}, {encode:.1f}, {decode:.2f}")
        rows.append([name, *cells])
    print_table(["encoding", *kinds], rows)

    print(
        f"\nkB per record; in brackets, GB beside the images of {COCO_TRAIN_IMAGES:,} such records"
    )
    rows = []
    for data, sizes in images.items():
        means = [statistics.mean(lengths[data, kind]) for kind in kinds]
        beside = [(mean - statistics.mean(sizes)) * COCO_TRAIN_IMAGES / 1e9 for mean in means]
        cells = [f"{m / 1e3:.1f} ({b:.1f})" for m, b in zip(means, beside, strict=True)]
        rows.append([data, str(len(sizes)), f"{statistics.mean(sizes) / 1e3:.1f}", *cells])
    print_table(["data", "photos", "image alone", *kinds], rows)


if __name__ == "__main__":
    main()
