"""The rendition's inference in a process that does nothing else, to see what memory it needs.

    python -m maft_jax.benchmarks.torch_alone FOLDER

prints the bytes at the peak; `peak_bytes_alone` fills the folder and starts it. Without jax.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import numpy as np

from maft_jax.benchmarks.timing import process_peak_bytes

_ARRAYS, _SIZES = "arrays.npz", "sizes.json"


def peak_bytes_alone(arrays: Mapping[str, np.ndarray], tower: Mapping, sizes: Mapping) -> int:
    """Most memory of a process that labels an image twice, on a CPU.

    Args:
        arrays: image, proposals and text, as `segment` reads them.
        tower: arguments of ImageTower; memory does not depend on the weights' values.
        sizes: the other arguments of `segment`.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(pathlib.Path(folder, _ARRAYS), **arrays)
        settings = json.dumps({"tower": dict(tower), "sizes": dict(sizes)})
        pathlib.Path(folder, _SIZES).write_text(settings)
        command = [sys.executable, "-m", __name__, folder]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _label_twice(folder: pathlib.Path) -> None:
    import torch

    from maft_jax.benchmarks.pytorch.official_inference import segment
    from maft_jax.benchmarks.pytorch.openai_clip import ImageTower

    settings = json.loads((folder / _SIZES).read_text())
    with np.load(folder / _ARRAYS) as arrays:
        image, proposals, text = (
            torch.tensor(arrays[name]) for name in ("image", "proposals", "text")
        )
    tower = ImageTower(**settings["tower"])
    for _ in range(2):
        segment(tower, text, image, proposals, **settings["sizes"])


if __name__ == "__main__":
    _label_twice(pathlib.Path(sys.argv[1]))
    print(process_peak_bytes())
