"""The teacher's class probabilities on disk: a row for every example of a record set, in parts.

A part is a .npy file, sealed with which examples it is about and with everything that the
probabilities depend on. It is written aside and renamed, and any process can add missing ones.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32

from input_pipeline.records.sealed_json import read_sealed, seal
from maft_jax.runtime import sealed_files
from maft_jax.runtime.atomic_files import atomic_write_bytes

PART_SIZE = 256
"""Examples in a part: what a kill costs at most."""

DESCRIPTION_FILE = "teacher.json"

_PREFIX = "teacher-"


@dataclasses.dataclass(frozen=True)
class TeacherCache:
    """Probabilities [num_images, num_classes], in a folder of its own for every description."""

    records: epath.Path
    """The folder of the records, in which that folder is."""
    description: Mapping[str, Any]
    """All that they depend on, JSON scalars; `num_images` and `num_classes` among them."""

    @property
    def folder(self) -> epath.Path:
        return self.records / f"{_PREFIX}{hashlib.sha256(self._key).hexdigest()[:12]}"

    @property
    def num_parts(self) -> int:
        return -(-self.description["num_images"] // PART_SIZE)

    def examples_of(self, part: int) -> range:
        """Indices of a part's examples."""
        first = part * PART_SIZE
        return range(first, min(first + PART_SIZE, self.description["num_images"]))

    def read_part(self, part: int) -> Float32[np.ndarray, "rows c"] | None:
        """The rows of a part, None where it is missing; where it is corrupt, that is logged."""
        array = sealed_files.read_sealed(self._path(part), self._sealed_with(part))
        return None if array is None else np.load(io.BytesIO(array), allow_pickle=False)

    def write_part(self, part: int, rows: Float32[np.ndarray, "rows c"]) -> None:
        """Writes a part, and before the first one what they all depend on, for people."""
        expected = (len(self.examples_of(part)), self.description["num_classes"])
        if rows.shape != expected:
            raise ValueError(f"part {part}: expected rows of shape {expected}, got {rows.shape}")
        if not (self.folder / DESCRIPTION_FILE).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.folder / DESCRIPTION_FILE, seal(dict(self.description)))
        array = io.BytesIO()
        np.save(array, rows, allow_pickle=False)
        sealed_files.write_sealed(self._path(part), array.getvalue(), self._sealed_with(part))

    def missing_parts(self, parts: Sequence[int] | None = None) -> list[int]:
        """Which of the given parts, or of all, are missing or corrupt."""
        parts = range(self.num_parts) if parts is None else parts
        return [part for part in parts if self.read_part(part) is None]

    def read(self) -> Float32[np.ndarray, "examples c"]:
        """All rows.

        Raises:
            ValueError: parts are missing or corrupt; says how to compute them.
        """
        parts = [self.read_part(part) for part in range(self.num_parts)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            raise ValueError(
                f"config.loss.cached_teacher: {len(parts) - len(found)} of {len(parts)} parts of "
                f"{self.folder} are missing; compute them with python -m "
                "maft_jax.cli.precompute_proposals and the configuration of this run"
                f"{self._what_others_are_for()}"
            )
        return np.concatenate(found)

    def _what_others_are_for(self) -> str:
        """How other caches of these records differ, each in a line of its own."""
        lines = []
        for path in sorted(self.records.glob(f"{_PREFIX}*/{DESCRIPTION_FILE}")):
            there = read_sealed(path, f"delete {path.parent}")
            differences = [
                f"{name} {there.get(name)!r} there, {now!r} now"
                for name, now in self.description.items()
                if there.get(name) != now
            ]
            if differences:
                lines.append(f"\n  {path.parent.name} is for {'; '.join(differences)}")
        return "".join(lines)

    def _path(self, part: int) -> epath.Path:
        return self.folder / f"{part:05d}-of-{self.num_parts:05d}.npy"

    @property
    def _key(self) -> bytes:
        return json.dumps(dict(self.description), sort_keys=True).encode()

    def _sealed_with(self, part: int) -> bytes:
        """Its place, so that a part under a name where it does not belong fails."""
        return self._key + repr(self.examples_of(part)).encode()
