"""Masks that resemble a given one to a chosen degree, as the errors of a real generator would."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt, zoom

_SIDES = (128, 512)
"""Most pixels per side at which a region is deformed: the second where the first misses its aim."""
_TOLERANCE = 0.05
_NOISE_POINTS = 6
"""Per side, of the noise that bends the boundary; it is interpolated between them."""
_LARGEST_STRENGTH = 4.0
_SEARCH_STEPS = 12

Mask = Bool[np.ndarray, "h w"]
Field = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class _Deformation:
    """What happens to a region at strength 1; lengths are in units of the root of its area."""

    shift: Float[np.ndarray, "2"]
    log_scale: float
    bend: Float[np.ndarray, "points points"]
    """How far the boundary moves outwards, from corner to corner of the region's window."""

    def on(self, inside: Mask) -> Callable[[float], Field]:
        """Strength to a field that is positive inside the deformed region."""
        distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
        size = np.sqrt(np.count_nonzero(inside))
        middle = np.argwhere(inside).mean(axis=0)
        bend = size * zoom(self.bend, np.divide(inside.shape, self.bend.shape), order=1)

        def field(strength: float) -> Field:
            source = [
                (np.arange(side) - center - strength * size * shift)
                / np.exp(strength * self.log_scale)
                + center
                for side, center, shift in zip(inside.shape, middle, self.shift, strict=True)
            ]
            rows, columns = (
                np.clip(np.rint(index), 0, len(index) - 1).astype(int) for index in source
            )
            return distance[rows[:, None], columns] + strength * bend

        return field


def deform_to_iou(mask: Mask, target_iou: float, random: np.random.Generator) -> tuple[Mask, float]:
    """A mask of about `target_iou` with the given one, which is not empty; and the IoU it has.

    A random mixture of shift, scaling and a boundary moved in and out by smooth noise, as strong
    as the IoU asks for. Regions of a few pixels allow few values: the IoU is then larger than
    asked for, 1 at most. What lies outside the image counts as outside the region.
    """
    deformation = _Deformation(
        shift=random.uniform(-1, 1, 2),
        log_scale=random.uniform(-1, 1),
        bend=random.uniform(0, 1) * random.uniform(-1, 1, (_NOISE_POINTS, _NOISE_POINTS)),
    )
    rows, columns = _window(mask.any(axis=1)), _window(mask.any(axis=0))
    window = mask[rows, columns]
    for side in _SIDES:
        deformed = _deform_window(window, deformation, target_iou, side)
        iou = _iou(window, deformed)
        if abs(iou - target_iou) <= _TOLERANCE:
            break
    whole = np.zeros_like(mask)
    whole[rows, columns] = deformed
    return whole, iou


def _deform_window(window: Mask, deformation: _Deformation, target_iou: float, side: int) -> Mask:
    """The window deformed at a resolution of at most `side`, as strongly as the target allows."""
    inside = np.pad(window[np.ix_(*(_middles(min(side, n), n) for n in window.shape))], 1)
    if not inside.any():
        return window
    field_at = deformation.on(inside)
    weak, strong = 0.0, _LARGEST_STRENGTH
    for _ in range(_SEARCH_STEPS):
        strength = (weak + strong) / 2
        if _iou(inside, field_at(strength) > 0) >= target_iou:
            weak = strength
        else:
            strong = strength
    field = field_at(weak)[1:-1, 1:-1]
    factors = np.divide(window.shape, field.shape)
    return zoom(field, factors, order=1, mode="nearest", grid_mode=True) > 0


def _iou(first: Mask, second: Mask) -> float:
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def _window(occupied: Bool[np.ndarray, " pixel"]) -> slice:
    """Where the region lies along one axis, with half its length on both sides."""
    first, last = np.flatnonzero(occupied)[[0, -1]]
    margin = (last - first) // 2 + 2
    return slice(max(0, first - margin), last + margin + 1)


def _middles(num_cells: int, side: int) -> Int[np.ndarray, " cell"]:
    return ((np.arange(num_cells) + 0.5) * side / num_cells).astype(int)
