"""Training geometry and colour jitter, applied to image, label map and proposals together.

One `Placement` says where the pixels of the output come from; image, label map and proposals are
each sampled through it in one step. `TrainGeometry` has the training defaults of MAFT; the colour
jitter is that of SSD (Liu et al., 2016) as detectron2 applies it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from input_pipeline.examples import IGNORE, proposal_grid_size

IMAGE_PADDING = 128
_NUM_PLACEMENT_DRAWS = 4
_NUM_COLOR_DRAWS = 9


@dataclass(frozen=True)
class TrainGeometry:
    """How an example becomes a square of `crop_size` pixels.

    With `augment`: the short side is drawn from `short_sides` (the long side is at most
    `max_long_side`), then a random crop, colour jitter and a horizontal flip. Without: the whole
    image is scaled to fit the square. What is left at the right and the bottom is padding.
    """

    crop_size: int = 640
    short_sides: tuple[int, ...] = tuple(range(320, 961, 64))
    max_long_side: int = 2560
    augment: bool = True

    def __post_init__(self):
        if self.crop_size < 2 or self.max_long_side < 1 or min(self.short_sides, default=0) < 1:
            raise ValueError(
                "TrainGeometry: expected crop_size >= 2, max_long_side >= 1 and at least one "
                f"positive short side, got {self}"
            )


class Placement(NamedTuple):
    """Resize to `resized_size`, cut `visible_size` at `offset`, mirror if `flip`; (y, x)."""

    image_size: tf.Tensor
    resized_size: tf.Tensor
    offset: tf.Tensor
    visible_size: tf.Tensor
    flip: tf.Tensor


def transform_example(
    image: tf.Tensor,
    label_map: tf.Tensor,
    proposals: tf.Tensor,
    seed: tf.Tensor,
    geometry: TrainGeometry,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Image, label map and proposals of one example on the training square.

    `seed`, two int64, decides everything that is random. Padding is 128 in the image, IGNORE in
    the label map and 0 in the proposals.
    """
    draws = tf.random.stateless_uniform(
        [_NUM_PLACEMENT_DRAWS + _NUM_COLOR_DRAWS], seed, dtype=tf.float64, alg="philox"
    )
    image_size = tf.shape(image)[:2]
    if geometry.augment:
        placement = random_placement(image_size, draws[:_NUM_PLACEMENT_DRAWS], geometry)
    else:
        placement = fitting_placement(image_size, geometry.crop_size)
    pixels = place_image(image, placement)
    if geometry.augment:
        pixels = jitter_colors(pixels, draws[_NUM_PLACEMENT_DRAWS:])
    pixels = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
    labels = place_label_map(label_map, placement)
    return (
        _pad_to_square(pixels, geometry.crop_size, IMAGE_PADDING),
        _pad_to_square(labels, geometry.crop_size, IGNORE),
        place_proposals(proposals, placement, geometry.crop_size),
    )


def random_placement(image_size: tf.Tensor, draws: tf.Tensor, geometry: TrainGeometry) -> Placement:
    """A random scale, crop and mirroring from four uniform draws of [0, 1)."""
    scale_draw, y_draw, x_draw, flip_draw = tf.unstack(draws)
    size = tf.cast(image_size, tf.float64)
    choice = tf.cast(scale_draw * len(geometry.short_sides), tf.int32)
    short_side = tf.gather(tf.constant(geometry.short_sides, tf.float64), choice)
    scale = tf.minimum(
        short_side / tf.reduce_min(size), geometry.max_long_side / tf.reduce_max(size)
    )
    resized = _scaled_size(size, scale)
    visible = tf.minimum(resized, geometry.crop_size)
    room = tf.cast(resized - visible + 1, tf.float64)
    offset = tf.cast(tf.stack([y_draw, x_draw]) * room, tf.int32)
    return Placement(image_size, resized, offset, visible, flip_draw < 0.5)


def fitting_placement(image_size: tf.Tensor, crop_size: int) -> Placement:
    """The whole image, its long side scaled to `crop_size`."""
    size = tf.cast(image_size, tf.float64)
    resized = _scaled_size(size, crop_size / tf.reduce_max(size))
    return Placement(image_size, resized, tf.zeros(2, tf.int32), resized, tf.constant(False))


def place_image(image: tf.Tensor, placement: Placement) -> tf.Tensor:
    """Visible part of the resized image, float32; bilinear and antialiased like Pillow's."""
    scale = tf.cast(placement.resized_size, tf.float32) / tf.cast(placement.image_size, tf.float32)
    visible = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=placement.visible_size,
        scale=scale,
        translation=-tf.cast(placement.offset, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]
    return _mirror_columns(visible, placement.flip)


def place_label_map(label_map: tf.Tensor, placement: Placement) -> tf.Tensor:
    """Visible part of the label map, resized by nearest with floor index."""
    for axis in (0, 1):
        position = tf.range(placement.visible_size[axis]) + placement.offset[axis]
        source = position * placement.image_size[axis] // placement.resized_size[axis]
        label_map = tf.gather(label_map, source, axis=axis)
    return _mirror_columns(label_map, placement.flip)


def place_proposals(proposals: tf.Tensor, placement: Placement, crop_size: int) -> tf.Tensor:
    """Proposals on the grid of the training square, bilinear between stored grid points."""
    grid_size, _ = proposal_grid_size(crop_size, crop_size)
    point = tf.linspace(0.0, float(crop_size - 1), grid_size)
    values = tf.cast(proposals, tf.float32)
    for axis in (0, 1):
        visible = tf.cast(placement.visible_size[axis], tf.float32)
        is_inside = point <= visible - 0.5
        crop_pixel = tf.where(placement.flip, visible - 1 - point, point) if axis == 1 else point
        resized_pixel = crop_pixel + tf.cast(placement.offset[axis], tf.float32)
        values = _sample_grid(values, resized_pixel, placement, axis)
        mask = tf.cast(is_inside, tf.float32)
        values *= mask[:, None] if axis == 0 else mask
    return tf.cast(tf.round(values), tf.uint8)


def _sample_grid(
    values: tf.Tensor, resized_pixel: tf.Tensor, placement: Placement, axis: int
) -> tf.Tensor:
    """Linear interpolation of stored proposals [n, h, w] at pixels of the resized image."""
    image_size = tf.cast(placement.image_size[axis], tf.float32)
    resized_size = tf.cast(placement.resized_size[axis], tf.float32)
    last = tf.shape(values)[axis + 1] - 1
    # Half-pixel convention of the resize, then align_corners of the stored grid.
    pixel = (resized_pixel + 0.5) * image_size / resized_size - 0.5
    row = pixel * tf.cast(last, tf.float32) / (image_size - 1)
    row = tf.clip_by_value(row, 0.0, tf.cast(last, tf.float32))
    before = tf.floor(row)
    first = tf.cast(before, tf.int32)
    low = tf.gather(values, first, axis=axis + 1)
    high = tf.gather(values, tf.minimum(first + 1, last), axis=axis + 1)
    weight = row - before
    return low + (high - low) * (weight[:, None] if axis == 0 else weight)


def jitter_colors(pixels: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """SSD colour jitter of float pixels in 0..255, from nine uniform draws of [0, 1).

    Brightness +-32, contrast and saturation x0.5 to x1.5, hue +-36 degrees, each with probability
    one half; contrast comes before or after saturation and hue.
    """
    (
        use_brightness,
        use_contrast,
        use_saturation,
        use_hue,
        contrast_first,
        brightness,
        contrast,
        saturation,
        hue,
    ) = tf.unstack(tf.cast(draws, tf.float32))
    shift = tf.where(use_brightness < 0.5, 64.0 * brightness - 32.0, 0.0)
    gain = tf.where(use_contrast < 0.5, 0.5 + contrast, 1.0)
    early_gain = tf.where(contrast_first < 0.5, gain, 1.0)
    late_gain = tf.where(contrast_first < 0.5, 1.0, gain)
    saturation_gain = tf.where(use_saturation < 0.5, 0.5 + saturation, 1.0)
    hue_shift = tf.where(use_hue < 0.5, 0.2 * hue - 0.1, 0.0)

    pixels = tf.clip_by_value(pixels + shift, 0.0, 255.0)
    pixels = tf.clip_by_value(pixels * early_gain, 0.0, 255.0) / 255.0
    pixels = tf.image.adjust_hue(tf.image.adjust_saturation(pixels, saturation_gain), hue_shift)
    return tf.clip_by_value(pixels * 255.0 * late_gain, 0.0, 255.0)


def _scaled_size(size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.cast(tf.floor(size * scale + 0.5), tf.int32), 1)


def _mirror_columns(array: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    return tf.cond(flip, lambda: tf.reverse(array, axis=[1]), lambda: array)


def _pad_to_square(array: tf.Tensor, size: int, value: int) -> tf.Tensor:
    shape = tf.shape(array)
    paddings = [[0, size - shape[0]], [0, size - shape[1]], *[[0, 0]] * (array.shape.rank - 2)]
    padded = tf.pad(array, paddings, constant_values=tf.cast(value, array.dtype))
    return tf.ensure_shape(padded, [size, size, *array.shape[2:]])
