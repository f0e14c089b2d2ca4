"""A folder of exported programs, each verified, with the tokenizer and how to use them."""

import dataclasses
import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence

from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.convert.text_tokenizers import tokenizer_of, write_tokenizer
from maft_jax.convert.transformers_processor import processor_files
from maft_jax.export.formats import Format
from maft_jax.export.programs import Program, image_program, label_program, text_program
from maft_jax.export.verification import Check, verify
from maft_jax.hub.local_files import pinned
from maft_jax.inference.clip import Clip
from maft_jax.inference.vocabulary import check_apart, check_names
from maft_jax.models.text_classifier import check_distinct
from maft_jax.runtime.atomic_files import atomic_folder, clear_leftovers

_FIXED = {"batch": 1, "proposals": 100}
"""Where a format has no free sizes and nothing else is asked for."""
_OF_PIXELS = "preprocessor_config.json"
"""Not written: it tells how transformers reads images."""
_EXAMPLE = "A photo of a red-brown Cat."
"""Has what tokenizers treat differently: capitals, a hyphen, a full stop."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Export:
    """What is exported, apart from the weights."""

    format: Format
    dtype: str = "float32"
    """Of stored matrices, one of programs.DTYPES."""
    classes: Sequence[str] = ()
    """Names whose rows are baked in; without them the text tower is exported beside."""
    background: Sequence[str] = ()
    templates: Sequence[str] = PROMPT_TEMPLATES
    mask_size: int | None = None
    """Pixels per side of the masks that the tower is given; by default the image's."""
    batch: int | None = None
    proposals: int | None = None
    """Fixed sizes; by default free, or where a format cannot have that, 1 and 100."""
    num_timed: int = 0
    """Runs that are timed."""


def export_clip(clip: Clip, source: str, out: pathlib.Path, export: Export) -> Iterator[str]:
    """Writes the folder; yields a line for each program.

    Raises:
        ValueError: names that are empty, alike or too long, sizes that do not suit the tower, what
            a format cannot hold, or a package that is not installed.
        DifferentProgram: an exported program computes something else.
    """
    programs = make_programs(clip, export)
    clear_leftovers(out.parent, out.name)
    told = []
    with atomic_folder(out) as folder:
        for program in programs:
            logger.info("exporting %s", program.name)
            path = export.format.write(program, folder)
            run = export.format.open(path)
            check = None if run is None else verify(program, run, export.num_timed)
            told.append(_described(program, path.name, check))
            yield _line(program, check, export.format)
        settings = _settings(clip, source, export) | {"programs": told}
        if not export.classes and clip.config.text is not None:
            _write_tokenizer(clip, folder / "tokenizer")
            tokens = clip.config.text.tokenize([_EXAMPLE])[0].tolist()
            settings["example_of_tokens"] = {"text": _EXAMPLE, "tokens": tokens}
        (folder / "export.json").write_text(json.dumps(settings, indent=2) + "\n")


def make_programs(clip: Clip, export: Export) -> list[Program]:
    """The image tower, label maps, and the text tower if no names are baked in."""
    names = _checked_names(clip, export)
    rows = clip.encode_text(names, export.templates) if names else None
    num_classes = len(export.classes) or None
    programs = [
        image_program(clip, rows, export.dtype, export.mask_size),
        label_program(num_classes, len(export.background)),
    ]
    if not names and clip.config.text is not None:
        programs.append(text_program(clip.config.text, clip.parameters["text"], export.dtype))
    sizes = {"batch": export.batch, "proposals": export.proposals}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if not export.format.free_sizes:
        side = export.mask_size or clip.image_size
        sizes = {**_FIXED, "height": side, "width": side, **sizes}
    fixed = [program.of_sizes(sizes) for program in programs]
    if export.format.free_sizes:
        return fixed
    for program in fixed:
        if program.free:
            logger.info(
                "%s is left out: %s has no free sizes, and %s are known with --classes alone",
                program.name,
                export.format.name,
                program.free,
            )
    return [program for program in fixed if not program.free]


def _checked_names(clip: Clip, export: Export) -> list[str]:
    if not export.classes:
        if export.background:
            raise ValueError("--background: has no meaning without --classes, which it is beside")
        return []
    classes = check_names(export.classes, "classes")
    background = check_names(export.background, "background") if export.background else ()
    check_apart(classes, background, {})
    names = [*classes, *background]
    if clip.config.text is not None:  # encode_text says so if it is
        check_distinct(names, "classes", clip.config.text.tokenize)
    return names


def _write_tokenizer(clip: Clip, folder: pathlib.Path) -> None:
    """As transformers reads it; of a tower with a vocabulary of its own the vocabulary's file."""
    folder.mkdir()
    if tokenizer_of(clip.config) is not None:
        write_tokenizer(clip.config, folder)
        return
    for name, text in processor_files(clip.config).items():
        if name != _OF_PIXELS:
            (folder / name).write_text(text)


def _settings(clip: Clip, source: str, export: Export) -> dict:
    return {
        "weights": pinned(source),
        "format": export.format.name,
        "dtype": export.dtype,
        "image_size": clip.image_size,
        "mask_size": export.mask_size or clip.image_size,
        "classes": list(export.classes),
        "background": list(export.background),
        "templates": list(export.templates),
        "logit_scale": clip.encoder.logit_scale,
        "versions": {name: importlib.metadata.version(name) for name in ("maft_jax", "jax")},
    }


def _described(program: Program, file: str, check: Check | None) -> dict:
    return {
        "name": program.name,
        "file": file,
        "inputs": [dataclasses.asdict(each) for each in program.inputs],
        "outputs": dict(program.outputs),
        "largest_difference": None if check is None else check.difference,
    }


def _line(program: Program, check: Check | None, format: Format) -> str:
    shapes = "; ".join(f"{each.name} {list(each.shape)}" for each in program.inputs)
    start = f"{program.name} ({shapes})".replace("'", "")
    if check is None:
        return (
            f"{start}: not verified, for {format.runtime} is not installed: "
            f"pip install {format.needs}"
        )
    line = f"{start}: differs by {check.difference:.1e} in {format.runtime}"
    if check.milliseconds is None:
        return line
    ours, theirs = check.milliseconds
    return f"{line}; median of ours {ours:.1f} ms, there {theirs:.1f} ms"
