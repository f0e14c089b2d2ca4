"""Shapes world as files, which the layout `shapes_world` reads."""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from input_pipeline.shapes_world.splits import (
    NUM_TRAIN,
    NUM_VAL,
    WORLD_VERSION,
    CaptionedScene,
    check_counts,
    draw_split,
    encode_png,
)
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES

Progress = Callable[[int, int], None]
"""Called with the numbers of scenes that are written and that there will be."""


def write_shapes_world(
    root: str | Path,
    seed: int = 0,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    progress: Progress | None = None,
) -> None:
    """Draws the data set into a new folder `root`, which appears complete or not at all.

    For both splits images/*.png, annotations/*.png (class ids) and captions.tsv
    (id<TAB>sentence) below train or val; beside them classes.txt, and world.json with the
    arguments and WORLD_VERSION. Ids are the numbers of `draw_scene`.

    Raises:
        ValueError: `root` exists, or a seed or count is impossible.
    """
    root = Path(root)
    check_counts(num_train, num_val)
    if root.exists():
        raise ValueError(
            f"{root}: expected a folder yet to be made, it exists; choose another or remove it"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_text(unfinished / "classes.txt", CLASS_NAMES)
        counts = {"num_train": num_train, "num_val": num_val}
        world = {"world_version": WORLD_VERSION, "seed": seed, **counts}
        _write_text(unfinished / "world.json", [json.dumps(world)])
        num_done = 0
        for split, count in (("train", num_train), ("val", num_val)):
            captions = []
            _make_folders(unfinished / split)
            for drawn in draw_split(seed, split, count):
                _write_scene(unfinished / split, drawn)
                captions.append(f"{drawn.example_id}\t{drawn.caption}")
                num_done += 1
                if progress is not None:
                    progress(num_done, num_train + num_val)
            _write_text(unfinished / split / "captions.tsv", captions)
        unfinished.chmod(0o755)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_folders(folder: Path) -> None:
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)


def _write_scene(folder: Path, drawn: CaptionedScene) -> None:
    for name, pixels in (("images", drawn.scene.image), ("annotations", drawn.scene.label_map)):
        (folder / name / f"{drawn.example_id}.png").write_bytes(encode_png(pixels))


def _write_text(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
