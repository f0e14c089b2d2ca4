"""A colour for every name: the same in every picture and vocabulary, and vivid."""

import functools
import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_LIGHTNESS = (0.54, 0.68, 0.82)
_SHARES_OF_CHROMA = (0.95, 0.68)
"""Of the most that sRGB can show of a hue at a lightness."""
_LOOKS_ALIKE = 0.05
"""Distance below which two names are told apart with effort, once blended with a photo."""
_DISTANCE = np.array([0.5, 1.0, 1.0])
"""Weights of the axes of OKLab: photos blur lightness more than hue."""
_CHOICES = 24
_FEW = 32
"""So many names can all look different."""

_GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, less their whole parts, keep apart however many there are."""
_LIGHTER = 0.21
"""By as much of OKLab's lightness the lightest shade differs from a colour, and the darkest."""
_LIGHTEST = (0.38, 0.92)
_TURN = 0.5
"""Radians of hue between those two."""

# Björn Ottosson, 2020: OKLab to linear sRGB.
_TO_CUBE_ROOTS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def name_color(name: str) -> tuple[int, int, int]:
    """The colour of a name, red, green, blue: a hash of it, capitals as small letters."""
    return _choice(_key(name), 0)[0]


def picture_colors(names: Sequence[str], present: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Colour of every name of a vocabulary by its index, in a picture of the `present` ones.

    Each has its `name_color`, unless that looks like another's: then one of the two takes the next
    of its own colours. Among up to 32 names this is settled once, whatever their order, so that
    each has one colour in all pictures of the vocabulary. More cannot all look different. Of those
    only the present ones are told apart, largest first as `present` lists them, and a name may have
    another colour in a picture where it could be mistaken for a larger one.
    """
    colors = {i: name_color(name) for i, name in enumerate(names)}
    some = present
    if len(names) <= _FEW:
        some = sorted(range(len(names)), key=lambda i: _number(_key(names[i]), 0))
    taken = np.empty((len(some), 3))
    for i, index in enumerate(some):
        key, best, farthest = _key(names[index]), 0, -1.0
        for choice in range(_CHOICES if i < 2 * _FEW else 1):
            lab = np.array(_choice(key, choice)[1]) * _DISTANCE
            nearest = np.linalg.norm(taken[:i] - lab, axis=1).min(initial=np.inf)
            if nearest > farthest:
                best, farthest = choice, nearest
            if farthest >= _LOOKS_ALIKE:
                break
        colors[index], lab = _choice(key, best)
        taken[i] = np.array(lab) * _DISTANCE
    return colors


def shades(color: tuple[int, int, int], count: int) -> list[tuple[int, int, int]]:
    """Colours of the objects of a class: its own, then lighter and darker ones by turns."""
    gamma = np.array(color) / 255
    linear = np.where(gamma <= 0.04045, gamma / 12.92, ((gamma + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ np.linalg.inv(_TO_RGB).T) @ np.linalg.inv(_TO_CUBE_ROOTS).T
    darkest, lightest = np.clip(lab[0] + np.array([-_LIGHTER, _LIGHTER]), *_LIGHTEST)
    found = [color]
    for number in range(1, count):
        step = (number * _GOLDEN + 0.5) % 1 - 0.5
        end = lightest if step > 0 else darkest
        lightness = float(lab[0] + 2 * abs(step) * (end - lab[0]))
        turn = _TURN * step
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        tried = np.linspace(1, 0, 41)[:, None] * (rotation @ lab[1:])
        labs = np.concatenate([np.full((len(tried), 1), lightness), tried], axis=1)
        shown = np.all((_linear_rgb(labs) >= -1e-9) & (_linear_rgb(labs) <= 1 + 1e-9), axis=1)
        found.append(_srgb(labs[np.argmax(shown)]))
    return found


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _number(key: str, choice: int) -> int:
    text = f"{choice} {key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=100_000)
def _choice(key: str, choice: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """sRGB and OKLab of the name's first, second, ... colour."""
    number = _number(key, choice)
    number, level = divmod(number, len(_LIGHTNESS))
    number, saturation = divmod(number, len(_SHARES_OF_CHROMA))
    hue = 2 * np.pi * (number % 2**32) / 2**32
    direction = np.array([0.0, np.cos(hue), np.sin(hue)])
    chromas = np.linspace(0.02, 0.35, 100)
    tried = np.array([_LIGHTNESS[level], 0, 0]) + chromas[:, None] * direction
    linear = _linear_rgb(tried)
    shown = np.all((linear >= 0) & (linear <= 1), axis=1)
    lab = tried[0] + (_SHARES_OF_CHROMA[saturation] * chromas[shown].max() - chromas[0]) * direction
    return _srgb(lab), tuple(lab.tolist())


def _srgb(lab: Float[np.ndarray, " 3"]) -> tuple[int, int, int]:
    linear = np.clip(_linear_rgb(lab), 0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * gamma).astype(int).tolist()
    return red, green, blue


def _linear_rgb(lab: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    return (lab @ _TO_CUBE_ROOTS.T) ** 3 @ _TO_RGB.T
