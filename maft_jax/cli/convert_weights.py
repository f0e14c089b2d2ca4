"""Converts CLIP weights between formats, and shows and verifies them.

    python -m maft_jax.cli.convert_weights ViT-B-16.pt clip_vit_b16 --to=transformers
    python -m maft_jax.cli.convert_weights runs/first tuned.safetensors --to=open_clip
    python -m maft_jax.cli.convert_weights runs/first ours.pth --into=maft_vit_b.pth
    python -m maft_jax.cli.convert_weights --inspect --verify hf:openai/clip-vit-base-patch16
    python -m maft_jax.cli.convert_weights runs/first my-clip --to=transformers --card \\
        --push=me/my-clip

SOURCE is a file, a folder as transformers and open_clip leave them, a name of the Hugging Face hub
or of OpenAI's (hf:OWNER/NAME, openai:ViT-B/16; downloaded once), the workdir of a training run
(its newest checkpoint, or --step), or random:SIZE; its format is recognised by its content.
DESTINATION is a file (.safetensors, .pt, .npz) or, without ending, a folder. Where its name leaves
several formats possible, --to says which. Nothing is unpickled but tensors. docs/weights.md has the
formats, and how to load them elsewhere.

Exit codes: 0 done, 1 failed or (--verify) different, 2 wrong input, 130 and 143 interrupted.
"""

import pathlib
import re

from absl import flags

from maft_jax.cli import command_line
from maft_jax.config.fields import expand_path
from maft_jax.runtime.console import log_to_stderr, run_and_report

_TO = flags.DEFINE_string("to", None, "format to write; a wrong one lists them all")
_FROM = flags.DEFINE_string("from", None, "format to read, if not the recognised one: freeseg, ...")
_INTO = command_line.define_path(
    "into",
    None,
    "checkpoint of the official code of MAFT, FC-CLIP or MAFT+: DESTINATION becomes a copy of it "
    "with our image tower, in its dtypes, and everything else as it was",
)
_TEXT_FROM = command_line.define_path("text_from", None, "weights whose text tower to take instead")
_IMAGE_ONLY = flags.DEFINE_bool("image_only", False, "leave the text tower out")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "source"], "of what is written; source = as it was"
)
_stated = command_line.define_stated_flags("SOURCE")
_INSPECT = flags.DEFINE_bool("inspect", False, "print tensors, architecture and fingerprints")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "compare with the format's own library on random images, texts and masks"
)
_CARD = flags.DEFINE_bool(
    "card", False, "of a run, written as a folder: add a model card (README.md) with its results"
)
_LICENSE = flags.DEFINE_string("license", None, "--card: of the weights, such as mit, apache-2.0")
_RESULTS = command_line.define_path(
    "results", None, "--card: workdir of an evaluation of these weights; the run's own count, too"
)
_PUSH = flags.DEFINE_string(
    "push", None, "OWNER/NAME: upload the folder to the Hugging Face hub, with the login's token"
)
_PRIVATE = flags.DEFINE_bool("private", False, "--push: make the repository a private one")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an existing DESTINATION")


def main(paths: list[str]) -> int:
    """Converts, and returns the exit code."""
    log_to_stderr()
    return run_and_report(lambda: _convert(*paths))


def _convert(source: str, destination: str | None = None) -> None:
    # Imported late: --help and wrong flags answer at once.
    from maft_jax.convert import conversion
    from maft_jax.weights import open_weights, path_of

    if destination is not None:
        conversion.check_destination(destination, _OVERWRITE.value)
    if _PUSH.value is not None:
        from maft_jax.publishing.upload import check_upload

        check_upload(_PUSH.value, private=_PRIVATE.value)
    weights = open_weights(source, **_stated(), format_name=_FROM.value)
    source = path_of(source)
    if _INSPECT.value:
        _print_contents(source, weights)
    if _VERIFY.value:
        _print_verification(source, weights)
    if destination is None:
        return
    if _TEXT_FROM.value is not None:
        other = open_weights(_TEXT_FROM.value)
        weights = conversion.with_text_of(weights, other, _TEXT_FROM.value)
    if _IMAGE_ONLY.value:
        weights = conversion.image_tower(weights)
    if _INTO.value is not None:
        _write_into(weights, destination)
    else:
        _write(weights, destination, source)


def _write(weights, destination: str, source: str) -> None:
    from maft_jax.convert import conversion
    from maft_jax.convert.formats import write_weights

    name = conversion.choose_format(weights, destination, _TO.value)
    card = _make_card(weights, destination, name, source) if _CARD.value else None
    with _progress(conversion.num_bytes(weights, _DTYPE.value)) as progress:
        write_weights(weights, destination, name, _DTYPE.value, progress.update)
    print(f"wrote {destination}: {len(weights.tensors)} parameters in the format {name}")
    if _VERIFY.value:
        _print_verification(destination, conversion.read_back(weights, destination, name))
    if card is not None:
        from etils import epath

        from maft_jax.publishing.model_card import CARD
        from maft_jax.runtime.atomic_files import atomic_write_bytes

        atomic_write_bytes(epath.Path(destination) / CARD, card.encode())
    if _PUSH.value is not None:
        from maft_jax.publishing.upload import upload

        message = f"Weights in the format {name}, by maft_jax"
        url = upload(destination, _PUSH.value, private=_PRIVATE.value, message=message)
        print(f"uploaded to {url}; maft_jax reads it as hf:{_PUSH.value}")


def _make_card(weights, destination: str, format_name: str, source: str) -> str:
    from maft_jax.publishing.model_card import describe_run_to_publish, model_card
    from maft_jax.state.restored_run import is_training_run

    if not is_training_run(source):
        raise ValueError(f"--card: expected the workdir of a training run as SOURCE, got {source}")
    return model_card(
        describe_run_to_publish(
            source,
            weights,
            pathlib.Path(destination),
            format_name,
            step=_stated()["step"],
            evaluation=_RESULTS.value,
            license=_LICENSE.value,
            repository=_PUSH.value,
        )
    )


def _write_into(weights, destination: str) -> None:
    from maft_jax.convert import fcclip, maft
    from maft_jax.convert.conversion import image_tower
    from maft_jax.convert.formats import read_weights
    from maft_jax.weights import path_of

    template = pathlib.Path(path_of(_INTO.value))
    if not template.is_file():
        raise ValueError(
            f"--into={template}: no such file; expected a checkpoint of MAFT, FC-CLIP or MAFT+"
        )
    vision, visual = weights.config.vision, image_tower(weights).parameters()["visual"]
    with _progress(template.stat().st_size) as progress:
        written = template, destination, vision, visual, progress.update
        if fcclip.holds_fcclip(template):
            fcclip.write_into(*written, weights.modules)
        elif weights.modules is None:
            maft.write_into(*written)
        else:
            raise ValueError(
                f"--into={template}: expected a checkpoint of MAFT+ or Mask-Adapter, since the run "
                "trained modules beside the tower; or give its tuned.safetensors, the tower alone"
            )
    replaced = "the image tower" + (" and its modules" if weights.modules else "")
    print(f"wrote {destination}: a copy of {template} with {replaced} replaced")
    if _VERIFY.value:
        _print_verification(destination, read_weights(destination))


def _print_contents(source: str, weights) -> None:
    from maft_jax.convert.inspection import describe_tensors, describe_weights
    from maft_jax.convert.weights_source import open_tensors

    read_from_file = weights.format_name is not None
    tensors = open_tensors(source).tensors if read_from_file else weights.tensors
    print(f"{source}\n\n{describe_tensors(tensors)}\n\n{describe_weights(weights)}")


def _print_verification(path: str, weights) -> None:
    from maft_jax.convert.verification import verify

    print(f"\nlargest difference between embeddings, {path}")
    for comparison in verify(path if weights.format_name else None, weights):
        print(f"  {comparison}")


def _progress(total: int):
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None)


def check_arguments(paths: list[str]) -> list[str]:
    """SOURCE and perhaps DESTINATION; ValueError for anything else."""
    if not 1 <= len(paths) <= 2:
        raise ValueError(f"expected SOURCE [DESTINATION], got {paths}; --help says more")
    if len(paths) == 1 and not (_INSPECT.value or _VERIFY.value):
        raise ValueError("expected a DESTINATION to write, or --inspect, or --verify")
    if _INTO.value is not None and (_TO.value or _IMAGE_ONLY.value or _TEXT_FROM.value):
        raise ValueError("--into writes the image tower alone, in the format that the file has")
    if _IMAGE_ONLY.value and _TEXT_FROM.value:
        raise ValueError("--image_only and --text_from exclude each other")
    _check_publishing(paths)
    return [*map(expand_path, paths)]


def _check_publishing(paths: list[str]) -> None:
    """Raises ValueError for flags that would be ignored, or that a file has no place for."""
    for name, other in (("license", _CARD), ("results", _CARD), ("private", _PUSH)):
        if flags.FLAGS[name].value and not other.value:
            raise ValueError(f"--{name}: only with --{other.name}; leave it out")
    if not (_CARD.value or _PUSH.value):
        return
    files = (".safetensors", ".pt", ".pth", ".bin", ".npz")
    if len(paths) < 2 or pathlib.Path(paths[1]).suffix in files or _INTO.value:
        raise ValueError(
            "--card and --push: expected a folder as DESTINATION, a name without ending, such as "
            "my-clip with --to=transformers"
        )
    if _CARD.value and (_IMAGE_ONLY.value or _TEXT_FROM.value):
        raise ValueError(
            "--card: expected the whole CLIP of a run, with the text tower that its results are "
            "of; drop --image_only and --text_from"
        )
    if _LICENSE.value and not re.fullmatch("[a-z0-9][a-z0-9.+-]*", _LICENSE.value):
        raise ValueError(
            f"--license={_LICENSE.value}: expected an identifier of the hub, such as mit, "
            "apache-2.0, cc-by-nc-4.0 or other"
        )


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, check_arguments)


if __name__ == "__main__":
    run()
