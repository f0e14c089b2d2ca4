"""Jobs small and fast enough for tests that run them often, in processes of their own."""

import hashlib
import io
import os
import time

import numpy as np
from PIL import Image

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals.generator import Proposals
from maft_jax.proposals.precompute_shards import PrecomputeJob

CLASS_NAMES = ("left", "right")


class DrawnSource:
    """Images of noise whose left half is class 0 and whose right half is class 1."""

    def __init__(self, num_examples: int, sizes=((24, 40),), bad=(), versions=None):
        self.class_names = CLASS_NAMES
        self.synonyms = {}
        self.example_ids = tuple(f"photo_{i:03d}" for i in range(num_examples))
        self.versions = [0] * num_examples if versions is None else versions
        self._sizes = sizes
        self._bad = bad

    def __len__(self):
        return len(self.example_ids)

    def __getitem__(self, index):
        if index in self._bad:
            raise ValueError(f"{self.example_ids[index]}.png: the file is corrupt")
        label_map = np.zeros(self._size(index), np.int32)
        label_map[:, label_map.shape[1] // 2 :] = 1
        label_map[0] = IGNORE
        return Example(self.example_ids[index], self._image(index), label_map)

    def _image(self, index):
        rng = np.random.default_rng([index, self.versions[index]])
        return rng.integers(0, 256, (*self._size(index), 3), np.uint8)

    def _size(self, index):
        return self._sizes[index % len(self._sizes)]

    def image_bytes(self, index):
        content = io.BytesIO()
        Image.fromarray(self._image(index)).save(content, "png")
        return content.getvalue()

    def signature(self, index):
        return str(self.versions[index])


class BlockProposals:
    """Random blocks of a random score, after `seconds`; notes its process in the file `pids`."""

    def __init__(self, seconds: float = 0.0, fingerprint: str = "v1", pids: str = ""):
        self.name = "blocks"
        self.fingerprint = fingerprint
        self._seconds = seconds
        self._pids = pids

    def __call__(self, example, num_proposals):
        time.sleep(self._seconds)
        if self._pids:
            with open(self._pids, "a") as file:
                file.write(f"{os.getpid()}\n")
        digest = hashlib.sha256(example.image.tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        coarse = rng.random((num_proposals + 2, 6, 10)) < 0.5
        return Proposals(
            masks=coarse.repeat(4, axis=1).repeat(4, axis=2),
            scores=rng.random(num_proposals + 2).astype(np.float32),
        )


def make_job(folder, num_examples=20, seconds=0.0, **changes) -> PrecomputeJob:
    """A job over DrawnSource and BlockProposals; `changes` are fields of PrecomputeJob."""
    fields = {
        "source": DrawnSource(num_examples),
        "dataset": "drawn",
        "split": "train",
        "generator": BlockProposals(seconds),
        "num_proposals": 3,
        "folder": str(folder),
        "shard_size": 2,
    }
    return PrecomputeJob(**(fields | changes))
