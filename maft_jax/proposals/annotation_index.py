"""Annotations of single images out of one large JSON file, which is never in memory as a whole."""

import functools
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from input_pipeline.file_names import portable_path
from input_pipeline.limits import MAX_JSON_BYTES, check_limit

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class AnnotationIndex:
    """Where the annotations of each image lie in a file of COCO's layout."""

    path: Path
    images: dict[str, list[dict]] | None
    """Rows of the table `images` by file name without folder and ending; None: no such table."""
    rows: dict[str, Int64[np.ndarray, "annotations 2"]]
    """By image_id as a string: first byte and length of each annotation."""
    state: tuple[int, int]
    """The file's size and time when it was indexed; in another one, places mean nothing."""

    def annotations_of(self, example_id: str) -> tuple[list[dict], dict]:
        """The example's annotations in file order, and its row of `images` (or an empty one).

        Raises:
            ValueError: the file knows no such image.
        """
        row = self._image_row(example_id)
        if row:
            places = self.rows.get(str(row["id"]), ())
        else:
            tried = _image_ids(example_id)
            found = [image_id for image_id in tried if image_id in self.rows]
            if not found:
                raise ValueError(
                    f"{self.path}: no annotation of example {example_id!r}: looked for image_id "
                    f"{' or '.join(tried)}. If images have other ids, or some have no proposals, "
                    'write {"images": [{"id": ..., "file_name": ...}, ...], "annotations": [...]}'
                )
            places = self.rows[found[0]]
        try:
            with open(self.path, "rb") as file:
                if _state(file) != self.state:
                    raise ValueError("it has another size or time")
                return [_read_annotation(file, *place) for place in places], row
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: changed since it was first read ({error})") from error

    def _image_row(self, example_id: str) -> dict:
        if self.images is None:
            return {}
        example = portable_path(example_id)
        rows = self.images.get(example.name, [])
        exact = [row for row in rows if portable_path(row["file_name"]).with_suffix("") == example]
        candidates = exact or rows
        if len(candidates) != 1:
            files = [row["file_name"] for row in candidates][:3] or "none"
            others = [row["file_name"] for rows in self.images.values() for row in rows][:3]
            raise ValueError(
                f'{self.path}: expected one entry of "images" whose file_name is that of example '
                f"{example_id!r}, got {files}; the {len(self.images)} names there are such as "
                f"{others}"
            )
        return candidates[0]


@functools.lru_cache(maxsize=1)
def index_annotations(path: Path, fingerprint: str) -> AnnotationIndex:
    """Reads the file once per process; `fingerprint` stands for its content.

    The file is a list of annotations, or an object with `annotations` and perhaps `images`.

    Raises:
        ValueError: it is neither, or corrupt; says at which byte.
    """
    numbers: dict[str, int] = {}
    number_of, places = array("q"), array("q")
    images: dict[str, list[dict]] | None = None
    with open(path, "rb") as file:
        state = _state(file)
        for section, start, end, value in _read_sections(_JsonStream(file, path)):
            if section == "images":
                images = {} if images is None else images
                if value is not None:
                    _add_image(images, value, f"{path}, byte {start}")
                continue
            if not isinstance(value, dict) or not isinstance(value.get("image_id"), int | str):
                raise ValueError(
                    f"{path}, byte {start}: expected an annotation with image_id (a string or an "
                    f"integer) and segmentation, got {value!r:.80}"
                )
            image_id = str(value["image_id"])
            number_of.append(numbers.setdefault(image_id, len(numbers)))
            places.extend((start, end - start))
    order = np.argsort(np.array(number_of, np.int64), kind="stable")
    sorted_places = np.array(places, np.int64).reshape(-1, 2)[order]
    counts = np.bincount(np.array(number_of, np.int64), minlength=len(numbers))
    rows = np.split(sorted_places, np.cumsum(counts)[:-1]) if numbers else []
    return AnnotationIndex(path, images, dict(zip(numbers, rows, strict=True)), state)


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _image_ids(example_id: str) -> list[str]:
    stem = PurePosixPath(example_id).name
    number = [stem.lstrip("0") or "0"] if stem.isascii() and stem.isdecimal() else []
    return list(dict.fromkeys([example_id, stem, *number]))


def _add_image(images: dict[str, list[dict]], row: Any, where: str) -> None:
    match row:
        case {"id": int() | str() as image_id, "file_name": str(file_name)} if portable_path(
            file_name
        ).name:
            kept = {key: row[key] for key in ("height", "width") if key in row}
            kept |= {"id": image_id, "file_name": file_name}
            images.setdefault(portable_path(file_name).stem, []).append(kept)
        case _:
            raise ValueError(f"{where}: expected an image with id and file_name, got {row!r:.80}")


def _read_annotation(file: BinaryIO, start: np.int64, size: np.int64) -> dict:
    file.seek(start)
    return json.loads(file.read(size))


class _JsonStream:
    """JSON values one after another, with their places in the file."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path = file, path
        # Latin-1, so that a character is a byte; values that are not ASCII are decoded again.
        self._text, self._at, self._offset = "", 0, 0
        self._decoder = json.JSONDecoder()

    def _read_more(self) -> bool:
        check_limit(
            MAX_JSON_BYTES,
            len(self._text) - self._at,
            f"{self._path}, byte {self._offset + self._at}: bytes of one value",
        )
        chunk = self._file.read(_CHUNK_BYTES)
        if chunk:
            self._text = self._text[self._at :] + chunk.decode("latin-1")
            self._offset, self._at = self._offset + self._at, 0
        return bool(chunk)

    def error(self, message: str) -> ValueError:
        """What is wrong at the next character."""
        return ValueError(f"{self._path}, byte {self._offset + self._at}: {message}")

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """Consumes one of the expected characters."""
        found = self.peek()
        if not found or found not in expected:
            raise self.error(
                f"expected {' or '.join(expected) or 'the end of the file'}, got "
                f"{found or 'the end of the file'}; the JSON is corrupt or incomplete"
            )
        self._at += 1
        return found

    def value(self) -> tuple[int, int, Any]:
        """First byte, byte after the last, and value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._read_more():
                    continue
                raise self.error(
                    f"{error.msg} {error.pos - self._at} bytes further on; the JSON is corrupt or "
                    "incomplete"
                ) from error
            except RecursionError as error:
                raise self.error("nested too deeply; the JSON is corrupt") from error
            except ValueError as error:  # an integer of 5,000 digits
                raise self.error(f"{error}; the JSON is corrupt") from error
            # A number at the end of what was read may go on.
            if end < len(self._text) or not self._read_more():
                text, start = self._text[self._at : end], self._offset + self._at
                self._at = end
                if not text.isascii():
                    value = self._decode(text.encode("latin-1"), start)
                return start, start + len(text), value

    def _decode(self, data: bytes, start: int) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._path}, byte {start}: {error}; the JSON is corrupt") from error


def _read_sections(stream: _JsonStream) -> Iterator[tuple[str, int, int, Any]]:
    """("images" or "annotations", first byte, byte after the last, element).

    A table `images` is announced by an element None, so that an empty one is known.
    """
    if stream.peek() == "[":
        yield from (("annotations", *element) for element in _read_elements(stream))
    else:
        sections = set()
        closing = stream.take("{")
        while closing != "}" and stream.peek() != "}":
            _, _, key = stream.value()
            stream.take(":")
            if key in ("images", "annotations"):
                sections.add(key)
                if key == "images":
                    yield key, 0, 0, None
                yield from ((key, *element) for element in _read_elements(stream))
            else:
                stream.value()
            closing = stream.take(",}")
        if "annotations" not in sections:
            raise stream.error('expected a list or an object with "annotations"')
    if stream.peek():
        stream.take("")


def _read_elements(stream: _JsonStream) -> Iterator[tuple[int, int, Any]]:
    stream.take("[")
    if stream.peek() == "]":
        stream.take("]")
        return
    closing = ","
    while closing == ",":
        yield stream.value()
        closing = stream.take(",]")
