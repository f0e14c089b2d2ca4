"""How many images and pixels of a record set show each class."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from etils import epath

from input_pipeline.examples import IGNORE
from input_pipeline.records.record_shards import atomic_write_bytes

COUNTS_FILE = "label_counts.json"

_MAX_LISTED = 10


@dataclass(frozen=True)
class LabelCounts:
    """Counts of the whole class list, in its order.

    `pixels` and `ignored_pixels` are None where a shard was written before they were counted.
    """

    class_names: tuple[str, ...]
    images: tuple[int, ...]
    pixels: tuple[int, ...] | None
    ignored_pixels: int | None

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that no pixel shows."""
        counted = zip(self.class_names, self.images, strict=True)
        return tuple(name for name, images in counted if not images)

    @property
    def ignored_share(self) -> float | None:
        """Of all pixels; None where they were not counted."""
        if self.pixels is None:
            return None
        return self.ignored_pixels / max(self.ignored_pixels + sum(self.pixels), 1)

    def table(self) -> str:
        """Aligned text: a line for each class, and one for ignored pixels."""
        width = max(map(len, ("(ignored)", *self.class_names)))
        pixels = self.pixels or (None,) * len(self.images)
        total = max(sum(self.pixels or ()) + (self.ignored_pixels or 0), 1)
        rows = [*zip(self.class_names, self.images, pixels, strict=True)]
        rows.append(("(ignored)", "", self.ignored_pixels))
        lines = [f"{'class':<{width}}  {'images':>9}  {'pixels':>15}  {'share':>7}"]
        for name, images, count in rows:
            shown = images if isinstance(images, str) else f"{images:,}"
            shares = ("-", "-") if count is None else (f"{count:,}", f"{count / total:.2%}")
            lines.append(f"{name:<{width}}  {shown:>9}  {shares[0]:>15}  {shares[1]:>7}")
        return "\n".join(lines)


def count_labels(
    class_names: Sequence[str], images: Mapping[int, int], statistics: Iterable[Mapping]
) -> LabelCounts:
    """Puts together the images of each class id, and what done-files say of each shard."""
    counted = [shard.get("class_pixels") for shard in statistics]
    pixels: Counter[int] = Counter()
    for shard_counts in filter(None, counted):
        pixels.update({int(class_id): count for class_id, count in shard_counts.items()})
    known = None not in counted
    ids = range(len(class_names))
    return LabelCounts(
        tuple(class_names),
        tuple(images[class_id] for class_id in ids),
        tuple(pixels[class_id] for class_id in ids) if known else None,
        pixels[IGNORE] if known else None,
    )


def write_label_counts(folder: epath.PathLike, counts: LabelCounts) -> None:
    """Writes label_counts.json for people and programs; nothing of ours reads it."""
    pixels = counts.pixels or (None,) * len(counts.images)
    rows = zip(counts.class_names, counts.images, pixels, strict=True)
    classes = [{"name": name, "images": images, "pixels": count} for name, images, count in rows]
    content = json.dumps(
        {"ignored_pixels": counts.ignored_pixels, "classes": classes}, indent=1, ensure_ascii=False
    )
    path = epath.Path(folder) / COUNTS_FILE
    encoded = f"{content}\n".encode("utf-8", "surrogateescape")
    if not path.exists() or path.read_bytes() != encoded:
        atomic_write_bytes(path, encoded)


def list_names(names: Sequence[str]) -> str:
    """The first names in quotes, and how many more there are."""
    more = len(names) - _MAX_LISTED
    return ", ".join(map(repr, names[:_MAX_LISTED])) + (f" and {more} more" if more > 0 else "")
