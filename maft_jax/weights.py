"""The way in for CLIP weights: files, folders, training runs, the package's own, random ones."""

import os
import pathlib

import jax
import numpy as np

from maft_jax.config.fields import expand_path
from maft_jax.convert.formats import ClipWeights, read_weights
from maft_jax.hub.local_files import local_path
from maft_jax.hub.names import did_you_mean, is_hub_name
from maft_jax.models.clip import CLIP_SIZES, FOLDERS, random_parameters

RANDOM_PREFIX = "random:"
BUILT_IN = {
    "built-in:shapes_world": pathlib.Path(__file__).parent / "shapes_world/clip.safetensors"
}
"""Weights that come with the package; maft_jax.cli.train_tiny_clip made them."""


def open_weights(
    source: str | os.PathLike,
    *,
    activation: str | None = None,
    head_width: int | None = None,
    tokenizer: str | None = None,
    format_name: str | None = None,
    step: int | None = None,
    pretrained: str | None = None,
    needs_text: bool = False,
) -> ClipWeights:
    """Architecture and weights, whose values are read later, with how they were tuned if noted.

    Args:
        source: a file or folder in a format of convert.formats, recognised by content, the workdir
            of a training run, a name of BUILT_IN, "hf:OWNER/NAME" or "openai:MODEL", which are
            downloaded once, or "random:SIZE" with a name of CLIP_SIZES.
        activation, head_width, tokenizer, format_name: of files, where their content does not tell
            or tells wrongly; see formats.read_weights.
        step, pretrained: of a training run: which checkpoint, by default the newest, and where the
            weights that it began with are now.
        needs_text: whether an image tower alone is refused.

    Raises:
        ValueError: the source is none of these, corrupt, of another architecture, or is told what
            only another kind of source has.
        OSError: it cannot be downloaded now.
    """
    source = expand_path(os.fspath(source))
    stated = {"activation": activation, "head_width": head_width, "tokenizer": tokenizer}
    file_options = stated | {"from": format_name}
    run_options = {"step": step, "pretrained": pretrained}
    if source.startswith(RANDOM_PREFIX):
        _refuse(source, "random weights of a known architecture", file_options | run_options)
        return _random(source)
    if _may_be_run(source):
        from maft_jax.state.restored_run import is_training_run, read_training_run  # loads orbax

        if is_training_run(source):
            _refuse(source, "a training run, whose architecture is known", file_options)
            return read_training_run(source, open_weights, **run_options)
        _refuse_parts_of_runs(source)
        _refuse_names_of_models(source)
    _refuse(source, "not a training run's workdir", run_options)
    weights = read_weights(path_of(source), **stated, format_name=format_name)
    if needs_text and weights.config.text is None:
        raise ValueError(
            f"{source}: an image tower without a text tower, which embeds the class names; "
            "expected a whole CLIP, or add one: cli.convert_weights --text_from=CLIP"
        )
    return weights


def path_of(source: str) -> str:
    """Where the file or folder that is called so lies."""
    return local_path(os.fspath(BUILT_IN.get(source, expand_path(source))))


def is_here(source: str) -> bool:
    """Whether there is something of that name to open, corrupt or not, or to download."""
    known = source.startswith(RANDOM_PREFIX) or source in BUILT_IN or is_hub_name(source)
    return known or (bool(source) and os.path.exists(source))


def size_named_by(source: str) -> str | None:
    """The key of CLIP_SIZES that a name such as ViT-L-14-336px.pt means, if any."""
    size = source.removeprefix(RANDOM_PREFIX)
    if size not in CLIP_SIZES:
        size = pathlib.PurePath(size).stem.removesuffix("px")
        size = FOLDERS.get(size, size)
    return size if size in CLIP_SIZES else None


def _may_be_run(source: str) -> bool:
    return source not in BUILT_IN and not is_hub_name(source) and not os.path.isfile(source)


def _refuse_parts_of_runs(source: str) -> None:
    from maft_jax.state.restored_run import is_training_run

    path = pathlib.Path(source)
    for run in path.parents:
        if is_training_run(run) and path.relative_to(run).parts[0] == "checkpoints":
            step = next((part for part in path.relative_to(run).parts if part.isdecimal()), None)
            this_step = "" if step is None else f", of this one with --step={step} or step={step}"
            raise ValueError(
                f"{source}: a part of the training run {run}, whose checkpoints are read by giving "
                f"the run itself: {run}{this_step}"
            )


def _refuse_names_of_models(source: str) -> None:
    """Nothing is downloaded without a prefix that says from where."""
    if hint := did_you_mean(source):
        raise ValueError(f"{source}: no such file or folder{hint}")
    size = "tiny" if source == "random" else source
    if size in CLIP_SIZES and not os.path.exists(source):
        raise ValueError(
            f"{source}: no such file, and a name alone is not enough: give a file of weights, or "
            f"{RANDOM_PREFIX}{size} to try things out"
        )


def _refuse(source: str, kind: str, settings: dict) -> None:
    given = [f"{name}={value}" for name, value in settings.items() if value is not None]
    if given:
        raise ValueError(f"{source} is {kind}, for which {', '.join(given)} has no meaning")


def _random(source: str) -> ClipWeights:
    size = source.removeprefix(RANDOM_PREFIX)
    if size not in CLIP_SIZES:
        raise ValueError(f"{source}: unknown size {size!r}; expected one of {list(CLIP_SIZES)}")
    config = CLIP_SIZES[size]
    return ClipWeights.of(config, jax.tree.map(np.asarray, random_parameters(config)))
