"""A TFDS builder of every published data set, made of its DatasetSpec.

BUILDERS["coco_stuff"](data_root="/data/coco").download_and_prepare()
"""

import itertools
from collections.abc import Iterator

import tensorflow_datasets as tfds

from input_pipeline.builders.base import SegmentationBuilder
from input_pipeline.dataset_specs import SPECS, DatasetSpec


def _make_builders() -> Iterator[type[SegmentationBuilder]]:
    published = [spec for spec in SPECS.values() if spec.citation]
    for name, specs in itertools.groupby(sorted(published, key=_name), _name):
        yield _make_builder(name, sorted(specs, key=lambda spec: spec.num_classes))


def _name(spec: DatasetSpec) -> str:
    return spec.name.removesuffix(f"_{spec.config}")


def _make_builder(name: str, specs: list[DatasetSpec]) -> type[SegmentationBuilder]:
    """Of one data set, or of several that are its configurations; the first is the default."""
    first = specs[0]
    configs = [
        tfds.core.BuilderConfig(name=spec.config, description=spec.title)
        for spec in specs
        if spec.config
    ]
    attributes = {
        "__module__": __name__,  # where pickle finds it
        "__doc__": f"{', or '.join(spec.title for spec in specs)}.",
        "name": name,
        "BUILDER_CONFIGS": configs,
        "DESCRIPTION": first.description,
        "HOMEPAGE": first.homepage,
        "CITATION": first.citation,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": _where_to_put_files(first),
    }
    words = name.split("_")
    return type("".join(map(str.capitalize, words)), (SegmentationBuilder,), attributes)


def _where_to_put_files(spec: DatasetSpec) -> str:
    """Instructions for TFDS's folder of manual downloads, which `data_root` replaces."""
    archives = ", ".join(str(download) for download in spec.downloads.values())
    sentences = [
        f"{spec.title} is read from `data_root`, or from this folder: put the archives into it as "
        "they are, or extract them there.",
        f"Archives: {archives}." if archives else "",
        f"{spec.obtaining}." if spec.obtaining else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


BUILDERS: dict[str, type[SegmentationBuilder]] = {
    builder.name: builder for builder in _make_builders()
}
"""By their names in TFDS. Each is here under its own name, too: `published.CocoStuff`."""
globals().update({builder.__name__: builder for builder in BUILDERS.values()})
