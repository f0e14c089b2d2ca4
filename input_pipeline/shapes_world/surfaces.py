"""What things look like: colours and patterns of objects, textures of backgrounds.

Integer arithmetic only. Random numbers are those of `RandomState`, whose streams numpy has frozen.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from input_pipeline.shapes_world.outlines import UNIT
from input_pipeline.shapes_world.vocabulary import BACKGROUNDS, COLORS, PATTERNS

Coordinates = Int[np.ndarray, "h w"]
Pixels = Int[np.ndarray, "h w 3"]
Color = Int[np.ndarray, "3"]
Figure = Bool[np.ndarray, "h w"]

_COLORS = {
    "red": (205, 45, 40),
    "green": (35, 165, 60),
    "blue": (45, 75, 210),
    "yellow": (240, 210, 45),
    "purple": (140, 50, 165),
    "white": (235, 235, 235),
}
_INKS = {
    "plain": (0, 0, 0),
    "striped": (15, 15, 20),
    "dotted": (60, 225, 235),
    "checked": (250, 140, 20),
    "speckled": (255, 130, 195),
    "netted": (110, 70, 25),
}
"""What each pattern is drawn with. A tower of four layers hardly learns patterns by their form
alone in the half hour that it has."""


def paint_object(
    pattern: int,
    color: int,
    down: Coordinates,
    right: Coordinates,
    radius: int,
    rng: np.random.RandomState,
) -> Pixels:
    """Colours of an object's pixels, given in its own coordinates; `radius` is in pixels."""
    name = PATTERNS[pattern]
    ground = _jittered(_COLORS[COLORS[color]], 16, rng)
    ink = _jittered(_INKS[name], 12, rng)
    period = UNIT * rng.randint(9, 13) // radius
    is_ink = _PATTERNS[name](down, right, period, rng)
    return np.where(is_ink[..., None], ink, ground)


def _plain(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    return np.zeros(down.shape, bool)


def _striped(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    return right % period < period // 2


def _dotted(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    half = period // 2
    return (down % period - half) ** 2 + (right % period - half) ** 2 < (period * 3 // 10) ** 2


def _checked(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    side = period * 2 // 3
    return (down // side + right // side) % 2 == 0


def _speckled(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    """Specks of 2 x 2 pixels."""
    specks = rng.randint(4, size=tuple(side // 2 + 1 for side in down.shape)) == 0
    return np.kron(specks, np.ones((2, 2), bool))[: down.shape[0], : down.shape[1]]


def _netted(
    down: Coordinates, right: Coordinates, period: int, rng: np.random.RandomState
) -> Figure:
    line = period // 4
    return (down % period < line) | (right % period < line)


_PATTERNS = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "speckled": _speckled,
    "netted": _netted,
}


def paint_background(background: int, size: int, rng: np.random.RandomState) -> Pixels:
    """A square of texture, `size` pixels a side."""
    y, x = np.ogrid[:size, :size]
    return _TEXTURES[BACKGROUNDS[background]](y, x, rng)


def _brick(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    height = rng.randint(9, 14)
    y, x = y + rng.randint(height), x + rng.randint(2 * height)
    row = y // height
    x = x + row % 2 * height
    mortar = (y % height < 2) | (x % (2 * height) < 2)
    tones = rng.randint(-12, 13, (64, 64))[row % 64, x // (2 * height) % 64]
    bricks = _jittered((150, 75, 58), 14, rng) + tones[..., None]
    return np.where(mortar[..., None], _jittered((182, 140, 124), 8, rng), bricks)


def _grass(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    """Blades: noise that is longer than wide."""
    size = y.shape[0]
    blades = rng.randint(-24, 25, (size // 5 + 2, size))
    shift = rng.randint(5, size=(1, size))
    tones = blades[(y + shift) // 5, x]
    return _jittered((88, 128, 58), 14, rng) + tones[..., None]


def _sand(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    """Ripples that bend slowly, and grains."""
    period = rng.randint(12, 18)
    bent = 4 * y + _wave(x + rng.randint(64), rng.randint(50, 80), 5 * period)
    ripples = _wave(bent, 4 * period, 26) - 13
    grains = rng.randint(-9, 10, (y.shape[0], x.shape[1]))
    return _jittered((206, 178, 128), 14, rng) + (ripples + grains)[..., None]


def _water(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    """Short horizontal glints."""
    size = y.shape[0]
    glints = rng.randint(-24, 25, (size // 3 + 2, size // 12 + 2))
    shift = rng.randint(12, size=(size // 3 + 2, 1))
    row = y // 3
    tones = glints[row, (x + shift[row, 0]) // 12]
    return _jittered((70, 130, 160), 14, rng) + tones[..., None]


def _wood(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    """Planks with grain along them."""
    size = x.shape[1]
    plank = rng.randint(22, 34)
    x = x + rng.randint(plank)
    fibres = rng.randint(-11, 12, size + plank)
    bent = x + _wave(y + rng.randint(64), rng.randint(40, 70), 4)
    tones = fibres[np.minimum(bent, size + plank - 1)] + rng.randint(-9, 10, 64)[x // plank % 64]
    planks = _jittered((128, 88, 52), 12, rng) + tones[..., None]
    return np.where((x % plank < 2)[..., None], np.array((98, 66, 40)), planks)


def _stone(y: Coordinates, x: Coordinates, rng: np.random.RandomState) -> Pixels:
    """Cobbles: each pixel has the tone of the nearest of the centers in a disturbed grid."""
    size, cell = y.shape[0], rng.randint(15, 21)
    count = size // cell + 3
    offsets = rng.randint(-cell // 3, cell // 3 + 1, (2, count, count))
    tones = rng.randint(-16, 17, (count, count))
    nearest = np.full((size, size), 1 << 30)
    second = nearest.copy()
    tone = np.zeros((size, size), np.int64)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            row, column = y // cell + 1 + step_y, x // cell + 1 + step_x
            center_y = (2 * row - 1) * cell // 2 + offsets[0, row, column]
            center_x = (2 * column - 1) * cell // 2 + offsets[1, row, column]
            distance = (y - center_y) ** 2 + (x - center_x) ** 2
            second = np.minimum(second, np.maximum(nearest, distance))
            tone = np.where(distance < nearest, tones[row, column], tone)
            nearest = np.minimum(nearest, distance)
    gaps = second - nearest < 3 * cell
    cobbles = _jittered((146, 144, 142), 14, rng) + tone[..., None]
    return np.where(gaps[..., None], np.array((112, 110, 108)), cobbles)


def _wave(values: Coordinates, period: int, height: int) -> Coordinates:
    """A triangle wave from 0 to `height`."""
    phase = values % period
    return 2 * height * np.minimum(phase, period - phase) // period


def _jittered(color: tuple[int, int, int], most: int, rng: np.random.RandomState) -> Color:
    return np.array(color) + rng.randint(-most, most + 1, 3)


_TEXTURES: dict[str, Callable[[Coordinates, Coordinates, np.random.RandomState], Pixels]] = {
    "brick": _brick,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "wood": _wood,
    "stone": _stone,
}
