"""Exports CLIP with masks as programs that run without this package.

    python -m maft_jax.cli.export_program WEIGHTS OUT --format=onnx --classes="cat, sofa, lamp"

OUT becomes a folder: the image tower with masks, label maps of masks and, without --classes, the
text tower with its tokenizer, as --format says, and export.json, which tells their inputs and
outputs. With --classes the rows of these names are inside, and the image tower gives their
probabilities. Each program is run in its own runtime, if that is installed, and refused where it
differs by more than 1e-5. docs/export.md has what each format can, and how to use it.

    ... --format=stablehlo      any process with JAX alone
    ... --format=onnx           onnxruntime, in Python, C++, browsers; pip install 'maft_jax[onnx]'
    ... --format=savedmodel     TensorFlow, TensorFlow Serving
    ... --format=tflite --proposals=50      phones; sizes are fixed

Exit codes: 0 done, 1 failed or different, 2 wrong input, 130 and 143 interrupted.
"""

import os
import pathlib

from absl import flags

from maft_jax.cli import command_line
from maft_jax.config.fields import expand_path
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.runtime.console import log_to_stderr, run_and_report

_FORMAT = flags.DEFINE_enum(
    "format", None, ["stablehlo", "onnx", "savedmodel", "tflite"], "of the programs"
)
_CLASSES = flags.DEFINE_string(
    "classes",
    "",
    "names to bake in, between commas, or a built-in list's name",
)
_BACKGROUND = flags.DEFINE_string(
    "background", "", "names of what is none of the classes; their pixels stay without a class"
)
_TEMPLATE = flags.DEFINE_multi_string(
    "template",
    [],
    f"prompt with {{}} for the name, may be given several times; default: {len(PROMPT_TEMPLATES)}",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "float16"],
    "of stored matrices; arithmetic is in float32",
)
_MASK_SIZE = flags.DEFINE_integer(
    "mask_size", None, "pixels per side of the masks; default: the image's", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    "batch", None, "fixed number of images; default: free, of tflite 1", lower_bound=1
)
_PROPOSALS = flags.DEFINE_integer(
    "proposals", None, "fixed number of masks; default: free, of tflite 100", lower_bound=1
)
_BENCHMARK = flags.DEFINE_bool("benchmark", False, "print median times of ours and of the runtime")
_masking = command_line.define_masking_flags()
_stated = command_line.define_stated_flags("WEIGHTS")
_NUM_TIMED = 10


def main(paths: list[str]) -> int:
    """Exports, and returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs more
    log_to_stderr()
    return run_and_report(lambda: _export(*paths))


def _export(source: str, out: str) -> None:
    # Imported late: --help and wrong flags answer at once.
    from maft_jax.convert.conversion import check_destination
    from maft_jax.export.exporting import Export, export_clip
    from maft_jax.export.formats import FORMATS
    from maft_jax.inference.clip import load
    from maft_jax.inference.vocabulary import parse_names, read_names

    check_destination(out, overwrite=False)
    export = Export(
        FORMATS[_FORMAT.value],
        _DTYPE.value,
        read_names(_CLASSES.value) if _CLASSES.value else (),
        parse_names(_BACKGROUND.value, "background") if _BACKGROUND.value else (),
        tuple(_TEMPLATE.value) or PROMPT_TEMPLATES,
        _MASK_SIZE.value,
        _BATCH.value,
        _PROPOSALS.value,
        _NUM_TIMED if _BENCHMARK.value else 0,
    )
    clip = load(source, **_masking(), **_stated())
    for line in export_clip(clip, source, pathlib.Path(out), export):
        print(line)
    print(f"wrote {out}")


def check_arguments(paths: list[str]) -> list[str]:
    """WEIGHTS and OUT; ValueError for anything else."""
    if len(paths) != 2:
        raise ValueError(f"expected WEIGHTS OUT, got {paths}; --help says more")
    if _FORMAT.value is None:
        raise ValueError("expected --format=stablehlo, onnx, savedmodel or tflite")
    if _masking()["image_aspect"] == "keep":
        raise ValueError("--image_aspect=keep: exported programs read squares; expected squash")
    return [*map(expand_path, paths)]


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, check_arguments)


if __name__ == "__main__":
    run()
