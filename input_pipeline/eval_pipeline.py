"""Batches for evaluation: every example once and in order, equally shaped on all processes."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from input_pipeline.example_checks import check_batching, check_example
from input_pipeline.examples import (
    IGNORE,
    PreparedExample,
    PreparedSource,
    proposal_grid_size,
)
from input_pipeline.numpy_dataset import Arrays, Dataset, Signature, batched_dataset
from input_pipeline.transforms import Placement, place_image, sample_proposals, scaled_size

SIZE_MULTIPLE = 64
"""Heights and widths of batches are multiples of this, so that few programs are compiled."""


@dataclass(frozen=True)
class EvalGeometry:
    """Test geometry: the short side becomes `short_side`, the long one at most `max_long_side`.

    The image a model sees is padded to multiples of `divisor`, which is its `padded_size`. It lies
    in arrays whose sides are multiples of `array_multiple`.
    """

    short_side: int = 640
    max_long_side: int = 2560
    divisor: int = 32
    array_multiple: int = SIZE_MULTIPLE

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"EvalGeometry: expected positive numbers, got {self}")


def make_eval_dataset(
    source: PreparedSource,
    *,
    global_batch_size: int,
    geometry: EvalGeometry,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int | None = None,
    num_generator_classes: int = 0,
) -> Dataset:
    """This process's rows of all batches, from the first example to the last.

    image             uint8 [b, H, W, 3], resized as Pillow does, then zeros right and below
    image_size        int32 [b, 2], height and width of the resized image
    padded_size       int32 [b, 2], the same rounded up to the divisor
    label_map         int32 [b, HL, WL] of native size, then IGNORE
    label_size        int32 [b, 2]
    proposals         uint8 [b, n, GH, GW], then zeros
    proposal_grid     int32 [b, 2], a quarter of image_size, rounded up
    proposal_valid    bool  [b, n], false where `proposals` is padding
    example_index     int32 [b], index in `source`, -1 in rows that only fill the last batch
    example_valid     bool  [b], false in those rows, whose sizes are 1
    class_logits      float32 [b, n, num_generator_classes] of the generator, if that is not 0

    Corner points of the proposals lie on the corner pixels of the resized image; proposals stored
    on another grid are resampled, bilinear. Shapes depend on `source.image_sizes` alone, so that
    all processes yield equally many and equally shaped batches without talking to each other.
    ValueError as from `make_train_dataset`, and for class logits that are missing or others.
    """
    check_batching(source, global_batch_size, process_index, process_count)
    local_batch_size = global_batch_size // process_count
    plan = _Plan(source, geometry, num_generator_classes)

    def example(number: int) -> Arrays:
        batch, row = divmod(number, local_batch_size)
        index = batch * global_batch_size + process_index * local_batch_size + row
        first = batch * global_batch_size
        in_batch = slice(first, first + global_batch_size)
        return plan.row(index if index < len(source) else -1, plan.shapes(in_batch))

    num_batches = -(-len(source) // global_batch_size)
    numbers = range(num_batches * local_batch_size)
    return batched_dataset(numbers, example, plan.signature, local_batch_size, num_workers)


def make_eval_batch(
    example: PreparedExample, num_proposals: int, geometry: EvalGeometry
) -> dict[str, np.ndarray]:
    """The batch that `make_eval_dataset` makes of a source with this example alone.

    Equal `num_proposals` make batches of equal shape of images whose sizes are similar, whatever
    the number of their proposals. ValueError as from `make_train_dataset`.
    """
    source = _OneExample(example, num_proposals)
    check_batching(source, 1, 0, 1)
    plan = _Plan(source, geometry)
    return {key: value[None] for key, value in plan.row(0, plan.shapes(slice(None))).items()}


class _OneExample:
    """The PreparedSource that holds one example; any label is allowed in it."""

    fingerprint = ""

    def __init__(self, example: PreparedExample, num_proposals: int):
        self._example = example
        last_class = max(0, int(example.label_map.max()))
        self.class_names = tuple(str(i) for i in range(last_class + 1))
        self.example_ids = (example.example_id,)
        self.num_proposals = num_proposals
        self.max_classes_per_image = len(self.class_names)
        self.image_sizes = np.array([example.image.shape[:2]], np.int32)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> PreparedExample:
        return self._example


class _Plan:
    """Sizes of everything, known from the sizes of the images before any is read."""

    def __init__(
        self, source: PreparedSource, geometry: EvalGeometry, num_generator_classes: int = 0
    ):
        self._source = source
        self._num_generator_classes = num_generator_classes
        self._array_multiple = geometry.array_multiple
        self._native = np.asarray(source.image_sizes, np.int32)
        self._resized = np.array(
            [_resized_size(*size, geometry) for size in self._native.tolist()], np.int32
        )
        self._padded = _round_up(self._resized, geometry.divisor)
        self._sizes = {
            "image_size": self._resized,
            "padded_size": self._padded,
            "label_size": self._native,
            "proposal_grid": np.stack(proposal_grid_size(*self._resized.T), axis=1),
        }

    @property
    def signature(self) -> Signature:
        """Of all rows; the sizes of images, label maps and proposals are those of their batch."""
        n, v = self._source.num_proposals, self._num_generator_classes
        logits = {"class_logits": (np.float32, (n, v))} if v else {}
        return {
            "image": (np.uint8, (None, None, 3)),
            "label_map": (np.int32, (None, None)),
            "proposals": (np.uint8, (n, None, None)),
            "proposal_valid": (np.bool_, (n,)),
            **{key: (np.int32, (2,)) for key in self._sizes},
            "example_index": (np.int32, ()),
            "example_valid": (np.bool_, ()),
            **logits,
        }

    def shapes(self, in_batch: slice) -> dict[str, tuple[int, ...]]:
        """Of the rows of a batch of these examples, which fit the largest of them."""
        largest = self._padded[in_batch].max(axis=0)
        height, width = _round_up(largest, self._array_multiple).tolist()
        label_size = _round_up(self._native[in_batch].max(axis=0), SIZE_MULTIPLE).tolist()
        fixed = {key: shape for key, (_, shape) in self.signature.items()}
        return fixed | {
            "image": (height, width, 3),
            "label_map": tuple(label_size),
            "proposals": (self._source.num_proposals, *proposal_grid_size(height, width)),
        }

    def row(self, index: int, shapes: dict[str, tuple[int, ...]]) -> Arrays:
        """The example at an index, or with -1 a row that only fills its batch."""
        dtypes = {key: dtype for key, (dtype, _) in self.signature.items()}
        row = {key: np.zeros(shape, dtypes[key]) for key, shape in shapes.items()}
        row["label_map"][:] = IGNORE
        row["example_index"][...] = index
        row["example_valid"][...] = index >= 0
        for key, sizes in self._sizes.items():
            row[key][:] = sizes[index] if index >= 0 else 1
        if index >= 0:
            self._fill(row, index)
        return row

    def _fill(self, row: Arrays, index: int) -> None:
        example = self._source[index]
        check_example(example, self._source)
        native, resized = (tuple(sizes[index].tolist()) for sizes in (self._native, self._resized))
        if example.image.shape[:2] != native:
            raise ValueError(
                f"{example.example_id}: expected an image of {native[1]}x{native[0]} pixels, as "
                f"its source says, got {example.image.shape[1]}x{example.image.shape[0]}"
            )
        image = place_image(example.image, Placement(native, resized, (0, 0), resized, False))
        row["image"][: resized[0], : resized[1]] = image
        row["label_map"][: native[0], : native[1]] = example.label_map
        proposals = example.proposals
        y, x = (
            np.linspace(0, stored - 1, points)
            for stored, points in zip(
                proposals.shape[1:], proposal_grid_size(*resized), strict=True
            )
        )
        sample_proposals(proposals, y, x, out=row["proposals"])
        row["proposal_valid"][: len(proposals)] = True
        if self._num_generator_classes:
            row["class_logits"][: len(proposals)] = self._class_logits(example)

    def _class_logits(self, example: PreparedExample) -> Float32[np.ndarray, "n v"]:
        expected = (len(example.proposals), self._num_generator_classes)
        logits = example.class_logits
        if logits is None or logits.shape != expected:
            got = "none" if logits is None else f"an array of shape {logits.shape}"
            raise ValueError(
                f"{example.example_id}: expected class logits of the proposal generator, "
                f"{expected[0]} proposals x {expected[1]} classes, got {got}; write the records "
                "with a generator that knows these classes, or set config.evaluation."
                "ensemble_weight=0"
            )
        return logits


def _resized_size(height: int, width: int, geometry: EvalGeometry) -> tuple[int, int]:
    scale = min(
        geometry.short_side / min(height, width), geometry.max_long_side / max(height, width)
    )
    return scaled_size((height, width), scale)


def _round_up(size: Int32[np.ndarray, "..."], multiple: int) -> Int32[np.ndarray, "..."]:
    return -(-size // multiple) * multiple
