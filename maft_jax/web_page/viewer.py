"""What viewer.js shows of a result, as JSON."""

import base64
import gzip
import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Int32
from PIL import Image

from maft_jax.inference.object_overlay import object_colors, uppermost_segments
from maft_jax.inference.overlay import place_names, segment_colors
from maft_jax.inference.result import Segmentation, class_regions
from maft_jax.inference.segment_masks import ObjectResult, segments_of
from maft_jax.inference.segments import Segment
from maft_jax.pictures.lettering import letter_size, readable
from maft_jax.web_page.session import Result

NO_CLASS = 0xFFFF
"""In the viewer's labels, where nothing is."""

_LONGEST_SIDE_SHOWN = 1600
"""Pixels of the copy that the browser gets; downloads are as large as the picture."""
_MOST_ABSENT_NAMES = 12


def viewer_data(page_result: Result) -> dict:
    """The picture, the labels, and the classes or objects in it.

    `labels` are base64 of gzip of little-endian uint16, row by row: places in `classes`, which
    are ordered by area, or NO_CLASS. `rest` is the share of the picture without a class. An object
    has a `detail` beside its name; where objects overlap the smaller one has the pixel.
    """
    result = page_result.segmentation
    if isinstance(result, Segmentation):
        labels, shown, once = result.label_map, _classes(result), ()
        about = f"{len(result.proposals)} proposals"
    else:
        labels, shown = uppermost_segments(result), _objects(result)
        once = [i for i, segment in enumerate(segments_of(result)) if segment.is_thing]
        about = f"{len(shown)} segments"
    image, small = _shown_size(result.image, labels)
    height, width = small.shape
    order = np.full(max(shown, default=-1) + 2, NO_CLASS, "<u2")  # its last is that of -1
    order[list(shown)] = np.arange(len(shown))
    pixels = result.image.shape[1::-1]
    return {
        "width": width,
        "height": height,
        "picture": f"data:image/jpeg;base64,{_base64(_jpeg(image))}",
        "labels": _base64(gzip.compress(order[small].tobytes(), mtime=0)),
        "classes": list(shown.values()),
        "outlines": not isinstance(result, Segmentation),
        "written": _written(small, {i: entry["name"] for i, entry in shown.items()}, once),
        "rest": float(np.mean(labels < 0)),
        "absent": _absent(result.class_names, {entry["name"] for entry in shown.values()}),
        "note": f"{pixels[0]} x {pixels[1]} pixels, {about}, {page_result.seconds:.1f} s",
    }


def _classes(segmentation: Segmentation) -> dict[int, dict]:
    """By index, largest first."""
    colors = segment_colors(segmentation)
    return {
        region.index: {
            "name": region.name,
            "color": list(colors[region.index]),
            "share": region.share,
        }
        for region in class_regions(segmentation)
    }


def _objects(result: ObjectResult) -> dict[int, dict]:
    """By place in `segments_of`, largest first; without those that others hide."""
    colors = object_colors(result)
    labels = uppermost_segments(result)
    segments = segments_of(result)
    seen = np.bincount(labels.ravel() + 1, minlength=len(segments) + 1)[1:]
    return {
        place: {
            "name": segments[place].class_name,
            "color": list(colors[place]),
            "share": segments[place].num_pixels / labels.size,
            "detail": _detail(segments[place]),
        }
        for place in np.argsort(-seen, kind="stable").tolist()
        if seen[place]
    }


def _detail(segment: Segment) -> str:
    _, _, width, height = segment.box
    return f"score {segment.score:.2f} · {width} x {height} pixels"


def _written(
    labels: Int32[np.ndarray, "h w"], names: Mapping[int, str], once: Collection[int]
) -> list[dict]:
    """Names with the places of their middles, as shares of width and height."""
    height, width = labels.shape
    texts = {index: readable(name, index) for index, name in names.items()}  # to be measured
    written = []
    for name in place_names(labels, texts, letter_size(height, width), once):
        left, top, name_width, name_height = name.box
        x, y = (left + name_width / 2) / width, (top + name_height / 2) / height
        written.append({"name": names[name.index], "x": x, "y": y})
    return written


def _shown_size(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, shrunk where the browser would get too much."""
    height, width = labels.shape
    shrink = _LONGEST_SIDE_SHOWN / max(height, width)
    if shrink >= 1:
        return image, labels
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    fewer = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(resized), np.asarray(fewer)


def _absent(class_names: Sequence[str], present: set[str]) -> str:
    names = [name for name in class_names if name not in present]
    if not names:
        return ""
    more = len(names) - _MOST_ABSENT_NAMES
    listed = " · ".join(names[:_MOST_ABSENT_NAMES]) + (f" · {more} more" if more > 0 else "")
    return f"Not found: {listed}"


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
