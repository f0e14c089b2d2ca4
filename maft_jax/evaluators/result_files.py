"""What an evaluation found, in the files that COCO's servers and tools take.

Of a panoptic evaluation `<name>_results.json` and the folder `<name>_results` with its PNGs, of
instances a list with run lengths; for people pictures of the first images. Until all images are
there they are kept in parts, so that an interrupted evaluation goes on to the same bytes; the JSON
comes last, and only whole.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TypedDict

from etils import epath

from maft_jax.evaluators.unfinished_counts import ProgressLines
from maft_jax.runtime.atomic_files import atomic_write, atomic_write_bytes
from maft_jax.runtime.sealed_files import read_sealed, write_sealed

_CHUNK = 2**22


class FoundInImage(TypedDict):
    """JSON values about one image."""

    number: int
    """By which images are ordered."""
    image: Mapping
    """Its row in a document of COCO's."""
    annotations: list[Mapping]
    """One of a panoptic result, one of each instance."""
    png: str | None
    """Of a panoptic result, in base64."""
    picture: str | None
    """For people, of the first images, the same."""


def encode_found(found: Iterable[FoundInImage]) -> bytes:
    """What `decode_found` takes."""
    return json.dumps(list(found)).encode()


def decode_found(*parts: bytes) -> list[FoundInImage]:
    """Of all parts, ordered by number."""
    return sorted((one for part in parts for one in json.loads(part)), key=lambda f: f["number"])


class ResultFiles:
    """The files of one data set and task, whose name is `name`, in a folder; for one process."""

    def __init__(self, folder: epath.Path, name: str, key: str, has_pngs: bool):
        """`key` says which evaluation it is, `has_pngs` whether it is a panoptic one."""
        self.document = folder / f"{name}_results.json"
        self._pngs = folder / f"{name}_results"
        self._pictures = folder / f"{name}_pictures"
        self._parts = folder / f"{name}.unfinished"
        self._key = key.encode()
        self._name, self._has_pngs = name, has_pngs

    def keep(self, first_batch: int, num_batches: int, found: bytes) -> None:
        """Keeps what was found in batches from `first_batch` on, until `num_batches` are done."""
        self._parts.mkdir(parents=True, exist_ok=True)
        write_sealed(self._parts / f"{first_batch:08d}-{num_batches:08d}", found, self._key)

    def has_kept(self, num_batches: int) -> bool:
        """Whether exactly so many batches are kept, whole; what is kept beyond them is removed."""
        reached = 0
        for path in sorted(self._parts.iterdir()) if self._parts.exists() else ():
            first, _, last = path.name.partition("-")
            follows = first == f"{reached:08d}" and last <= f"{num_batches:08d}"
            if follows and read_sealed(path, self._key) is not None:
                reached = int(last)
            else:
                path.unlink()
        return reached == num_batches

    def write(self, heading: Mapping, num_images: int) -> str | None:
        """Makes the files of all that is kept, and returns the digest of the JSON.

        Args:
            heading: what a panoptic document has besides images and annotations.

        Raises:
            ValueError: what was kept is damaged.
        """
        self.remove()
        progress = ProgressLines(f"{self._name}_results", num_images, 0)
        for done, found in enumerate(self._kept(), start=1):
            name = epath.Path(found["image"]["file_name"]).with_suffix(".png")
            for folder, png in ((self._pngs, found["png"]), (self._pictures, found["picture"])):
                if png is not None:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    atomic_write_bytes(folder / name, base64.b64decode(png))
            progress.show(done)
        with atomic_write(self.document) as aside, aside.open("w") as file:
            if self._has_pngs:
                file.write(json.dumps(heading)[:-1] + ', "images": ')
                _write_list(file, (found["image"] for found in self._kept()))
                file.write(', "annotations": ')
            _write_list(file, (row for found in self._kept() for row in found["annotations"]))
            file.write("}\n" if self._has_pngs else "\n")
        return self.digest()

    def digest(self) -> str | None:
        """SHA-256 of the JSON, and of names and sizes of its PNGs; None where it is not there."""
        if not self.document.exists() or (self._has_pngs and not self._pngs.exists()):
            return None
        digest = hashlib.sha256()
        with self.document.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        for png in _files_below(self._pngs) if self._has_pngs else ():
            digest.update(f"\0{png.relative_to(self._pngs)} {png.stat().length}".encode())
        return digest.hexdigest()

    def remove(self) -> None:
        """The JSON first, so that none is there whose PNGs are not."""
        self.document.unlink(missing_ok=True)
        for folder in (self._pngs, self._pictures):
            if folder.exists():
                folder.rmtree()

    def remove_kept(self) -> None:
        """Once the result is written, or another evaluation begins."""
        if self._parts.exists():
            self._parts.rmtree()

    def _kept(self) -> Iterator[FoundInImage]:
        """One after the other, in their order."""
        for path in sorted(self._parts.iterdir()):
            content = read_sealed(path, self._key)
            if content is None:
                raise ValueError(f"{path}: is damaged; remove {self._parts} and evaluate again")
            yield from decode_found(content)


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _write_list(file: IO[str], values: Iterable[Mapping]) -> None:
    """A JSON list, a line for each value, without holding all of them."""
    file.write("[")
    for number, value in enumerate(values):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(value))
    file.write("]")
