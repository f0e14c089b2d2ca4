"""A small data set of coloured shapes in front of textured backgrounds, drawn on the spot."""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

_COLORS = {
    "red disc": (205, 40, 40),
    "green square": (40, 160, 70),
    "blue triangle": (45, 75, 200),
    "yellow star": (240, 205, 40),
    "white cross": (240, 240, 240),
    "grey wall": (140, 140, 145),
    "grass": (105, 140, 60),
    "sand": (205, 175, 125),
}
SAMPLE_CLASSES = tuple(_COLORS)
_SHAPES = SAMPLE_CLASSES[:5]
_GROUNDS = SAMPLE_CLASSES[6:]

Point = tuple[float, float]


def write_sample_folder(
    root: str | Path, num_images: int = 8, seed: int = 0, size: tuple[int, int] = (160, 120)
) -> None:
    """Writes images/*.jpg, annotations/*.png and classes.txt below a new folder `root`.

    `size` is (width, height) in pixels. The folder appears complete or not at all. Raises
    ValueError if `root` exists.
    """
    root = Path(root)
    if root.exists():
        raise ValueError(f"{root}: expected a folder yet to be made, it exists; choose another")
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (unfinished / "images").mkdir()
        (unfinished / "annotations").mkdir()
        (unfinished / "classes.txt").write_text("\n".join(SAMPLE_CLASSES) + "\n")
        for number in range(num_images):
            image, label_map = draw_scene(np.random.default_rng([seed, number]), size)
            image.save(unfinished / "images" / f"scene_{number:04d}.jpg", quality=95)
            label_map.save(unfinished / "annotations" / f"scene_{number:04d}.png")
        unfinished.chmod(0o755)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """One image and its label map, a palette image of indices into SAMPLE_CLASSES."""
    width, height = size
    label_map = Image.new("P", size, SAMPLE_CLASSES.index("grey wall"))
    label_map.putpalette([value for color in _COLORS.values() for value in color])
    draw = ImageDraw.Draw(label_map)
    horizon = height * rng.uniform(0.4, 0.7)
    ground = SAMPLE_CLASSES.index(str(rng.choice(_GROUNDS)))
    draw.rectangle((0, horizon, width, height), fill=ground)
    for shape in rng.permutation(_SHAPES)[: rng.integers(2, 5)]:
        radius = rng.uniform(0.14, 0.26) * min(size)
        center = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        outline = _OUTLINES[str(shape)](center, radius, rng.uniform(-0.3, 0.3))
        draw.polygon(outline, fill=SAMPLE_CLASSES.index(str(shape)))
    return Image.fromarray(_paint(np.asarray(label_map), rng)), label_map


def _paint(
    labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of the classes under uneven light, each class with a texture of its own."""
    height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * math.pi)
    light = 1 + 0.15 * (np.cos(angle) * (2 * x / width - 1) + np.sin(angle) * (2 * y / height - 1))
    pixels = np.empty((height, width, 3))
    for label, (name, color) in enumerate(_COLORS.items()):
        inside = labels == label
        tint = np.asarray(color) + rng.normal(0, 8, 3)
        pixels[inside] = (tint + _texture(name, y, x, rng)[..., None])[inside]
    pixels = pixels * light[..., None] + rng.normal(0, 3, pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _texture(
    name: str, y: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "h w"]:
    if name == "grey wall":
        return np.where((y % 16 == 0) | ((x + 16 * (y // 16 % 2)) % 32 == 0), -25.0, 0.0)
    if name == "grass":
        return rng.normal(0, 18, y.shape)
    if name == "sand":
        return 8 * np.sin(y / 2.5 + 2 * np.sin(x / 11))
    return np.zeros(y.shape)


def _regular(corners: int) -> Callable[[Point, float, float], list[Point]]:
    return lambda center, radius, turn: [
        _polar(center, radius, turn + 2 * math.pi * corner / corners) for corner in range(corners)
    ]


def _star(center: Point, radius: float, turn: float) -> list[Point]:
    return [
        _polar(center, radius * (0.45 if corner % 2 else 1.0), turn + math.pi * corner / 5)
        for corner in range(10)
    ]


def _cross(center: Point, radius: float, turn: float) -> list[Point]:
    """Twelve corners; every third one is an inner corner of the plus sign."""
    arm = math.atan2(1, 3)
    corners = [(-arm, 1.0), (arm, 1.0), (math.pi / 4, math.hypot(1, 1) / math.hypot(1, 3))]
    return [
        _polar(center, radius * length, turn + quarter * math.pi / 2 + angle)
        for quarter in range(4)
        for angle, length in corners
    ]


def _polar(center: Point, radius: float, angle: float) -> Point:
    """Angles turn clockwise from the top."""
    return center[0] + radius * math.sin(angle), center[1] - radius * math.cos(angle)


_OUTLINES = {
    "red disc": _regular(48),
    "green square": _regular(4),
    "blue triangle": _regular(3),
    "yellow star": _star,
    "white cross": _cross,
}
