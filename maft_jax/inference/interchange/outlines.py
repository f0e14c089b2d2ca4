"""Outlines of masks that run between pixels: exact polygons with holes."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Int64
from scipy import ndimage

Ring = list[tuple[int, int]]
"""Points x, y; the last is the first again."""


def mask_polygons(mask: Bool[np.ndarray, "h w"]) -> list[list[Ring]]:
    """A polygon for each piece of a mask: its outline, then its holes.

    Pixels are of one piece where they share a side. Outlines turn from x to y, holes the other way.
    None crosses or touches itself, but two may touch in a point, as simple features may.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    pieces, count = ndimage.label(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    outlines: list[Ring] = [[] for _ in range(count)]
    holes: list[list[Ring]] = [[] for _ in range(count)]
    for piece, ring in _rings(pieces):
        moved = [(x + left, y + top) for x, y in ring]
        if _signed_area(ring) > 0:
            outlines[piece] = moved
        else:
            holes[piece].append(moved)
    return [[outline, *inside] for outline, inside in zip(outlines, holes, strict=True)]


def _rings(pieces: Int[np.ndarray, "h w"]) -> Iterator[tuple[int, Ring]]:
    """(piece from 0, ring), the piece always on the side to which x turns to y.

    Corners are where a border turns; where two pixels touch in a point alone there are two of them.
    Along each row of corners, and each column, two and two are the ends of a side.
    """
    x, y, piece, is_rising = _corners(np.pad(pieces, 1))
    across = np.arange(len(x)) ^ 1
    twins = np.zeros(len(x), bool)
    twins[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    order = np.lexsort((twins ^ is_rising, y, x))
    down = np.empty_like(order)
    down[order] = order[np.arange(len(x)) ^ 1]
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    below = np.pad(pieces, ((0, 1), (0, 1)))[y, x] > 0
    seen = np.zeros(len(x), bool)
    for left in range(0, len(x), 2):
        start = left if below[left] else left + 1
        if seen[start]:
            continue
        walk, at = [], start
        while not walk or at != start:
            after = across[at]
            seen[at] = seen[after] = True
            walk += [points[at], points[after]]
            at = down[after]
        for ring in _split_where_it_touches(walk):
            yield int(piece[start]) - 1, ring


def _corners(
    padded: Int[np.ndarray, "h w"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int[np.ndarray, " n"], np.ndarray]:
    """x, y and piece of the corners by y and x, and whether a pair's pixels go up to the right."""
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    inside = np.stack([upper_left, upper_right, lower_left, lower_right]) > 0
    falling = inside[0] & inside[3] & ~inside[1] & ~inside[2]
    rising = inside[1] & inside[2] & ~inside[0] & ~inside[3]
    pairs = falling | rising
    y, x = np.nonzero((inside.sum(axis=0) % 2 == 1) | pairs)
    copies = 1 + pairs[y, x]
    y, x = np.repeat(y, copies), np.repeat(x, copies)
    is_second = np.zeros(len(x), bool)
    is_second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    is_first = pairs[y, x] & ~is_second
    around = (upper_left[y, x], upper_right[y, x], lower_left[y, x], lower_right[y, x])
    first = np.where(rising[y, x], around[2], around[0])
    second = np.where(rising[y, x], around[1], around[3])
    piece = np.where(is_first, first, np.where(is_second, second, np.max(around, axis=0)))
    return x, y, piece, rising[y, x]


def _split_where_it_touches(walk: Ring) -> Iterator[Ring]:
    """Closed rings that visit no point twice."""
    path: Ring = []
    place: dict[tuple[int, int], int] = {}
    for point in walk:
        if point in place:
            first = place[point]
            yield [*path[first:], point]
            for left in path[first + 1 :]:
                del place[left]
            del path[first + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    yield [*path, path[0]]


def _signed_area(ring: Ring) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
