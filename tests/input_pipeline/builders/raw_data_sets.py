"""Writes a few made-up images of every data set, in the layout of its official files."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from jaxtyping import Int
from PIL import Image

from input_pipeline.class_lists import load_class_list

NUM_IMAGES = {"train": 3, "val": 2}
_ADE = "ADE20K_2021_17_01"
_SHAPE = (6, 8)


def write_coco_stuff(root: Path) -> None:
    for split, numbers in _numbers().items():
        for number in numbers:
            _write_image(root / f"{split}2017" / f"{number:012d}.jpg", number)
            labels = _labels(number, [0, 12, 181, 255])
            _write_label(root / "stuffthingmaps" / f"{split}2017" / f"{number:012d}.png", labels)


def write_voc2012(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    for split, numbers in _numbers().items():
        names = [f"2007_{number:06d}" for number in numbers]
        _write_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        for number, name in zip(numbers, names, strict=True):
            _write_image(voc / "JPEGImages" / f"{name}.jpg", number)
            labels = _labels(number, [0, 1, 20, 255])
            _write_label(voc / "SegmentationClass" / f"{name}.png", labels)


def write_ade20k_150(root: Path) -> None:
    for split, numbers in _numbers("training", "validation").items():
        for number in numbers:
            name = f"ADE_{split[:3]}_{number:08d}"
            challenge = root / "ADEChallengeData2016"
            _write_image(challenge / "images" / split / f"{name}.jpg", number)
            labels = _labels(number, [0, 1, 150])
            _write_label(challenge / "annotations" / split / f"{name}.png", labels)


def write_ade20k_full(root: Path) -> None:
    classes = load_class_list("ade20k_847")
    objects = [f"object {number}" for number in range(1, 3689)]
    for name, value in zip(classes.names, classes.label_values, strict=True):
        objects[value - 1] = name
    index = {"filename": [], "folder": [], "objectnames": objects, "objectIsPart": np.zeros((2, 5))}
    for split, numbers in _numbers("training", "validation").items():
        folder = f"{_ADE}/images/ADE/{split}/urban/street"
        for number in numbers:
            name = f"ADE_{'val' if split == 'validation' else 'train'}_{number:08d}"
            index["filename"].append(f"{name}.jpg")
            index["folder"].append(folder)
            _write_image(root / folder / f"{name}.jpg", number)
            ids = _labels(number, [0, 1, 401, 2978, 3148])
            colors = np.stack([ids // 256 * 10, ids % 256, ids * 0], -1)
            _write_label(root / folder / f"{name}_seg.png", colors)
    (root / _ADE / "index_ade20k.pkl").write_bytes(pickle.dumps(index))


def write_pascal_context(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2010"
    (root / "trainval").mkdir()
    for split, numbers in _numbers().items():
        names = [f"2008_{number:06d}" for number in numbers]
        _write_list(voc / "ImageSets" / "Main" / f"{split}.txt", names)
        for number, name in zip(numbers, names, strict=True):
            _write_image(voc / "JPEGImages" / f"{name}.jpg", number)
            labels = _labels(number, [0, 2, 300, 459]).astype(np.uint16)
            scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": labels})


def write_folder(root: Path) -> None:
    for number in range(NUM_IMAGES["train"]):
        _write_image(root / "images" / f"{number}.jpg", number)
        _write_label(root / "annotations" / f"{number}.png", _labels(number, [0, 1, 2, 255]))
    (root / "classes.txt").write_text("cat\ndog\nbird\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "coco_stuff": write_coco_stuff,
    "voc2012": write_voc2012,
    "ade20k_150": write_ade20k_150,
    "ade20k_full": write_ade20k_full,
    "pascal_context": write_pascal_context,
    "folder": write_folder,
}


def _numbers(train: str = "train", val: str = "val") -> dict[str, range]:
    first_of_val = NUM_IMAGES["train"] + 1
    return {
        train: range(1, first_of_val),
        val: range(first_of_val, first_of_val + NUM_IMAGES["val"]),
    }


def _labels(seed: int, values: list[int]) -> Int[np.ndarray, "h w"]:
    """Every value is there."""
    drawn = np.random.default_rng(seed).choice(values, _SHAPE)
    drawn.flat[: len(values)] = values
    return drawn


def _write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*_SHAPE, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=70)


def _write_label(path: Path, labels: Int[np.ndarray, "h w ..."]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def _write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")
