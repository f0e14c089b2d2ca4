"""Commands by name, as `maft-jax NAME` knows them; a test compares the table with what is there."""

import re
from typing import NamedTuple

PROGRAM = "maft-jax"


class Command(NamedTuple):
    """A module that is run like `python -m MODULE`."""

    module: str
    summary: str
    config: str = ""
    """What --config is where the command line has none."""


COMMANDS = {
    "train": Command("maft_jax.main", "fine-tune CLIP with masks, or train what proposes them"),
    "evaluate": Command(
        "maft_jax.main", "evaluate a run, or weights, on data sets", "configs/eval_only.py"
    ),
    "predict": Command("maft_jax.cli.predict", "segment images with classes in your own words"),
    "segment": Command("maft_jax.cli.predict", "the same as predict"),
    "web-page": Command("maft_jax.cli.web_page", "the same on a page in the browser"),
    "convert": Command("maft_jax.cli.convert_weights", "convert, show and verify weights"),
    "export": Command(
        "maft_jax.cli.export_program", "make programs that run without JAX or this package"
    ),
    "precompute": Command("maft_jax.cli.precompute_proposals", "make records with proposals, once"),
    "visualize": Command("maft_jax.cli.visualize", "draw what the trainer sees"),
    "diagnose": Command("maft_jax.cli.diagnose", "show what fine-tuning changes in CLIP"),
    "plan": Command("maft_jax.cli.plan", "what training takes on TPUs and GPUs that are not here"),
    "benchmark": Command("maft_jax.cli.benchmark", "time training and more on this machine"),
    "benchmark-input": Command("maft_jax.cli.benchmark_input", "time the input pipeline by itself"),
    "demo": Command("maft_jax.cli.demo", "the whole method on drawn pictures, in minutes"),
    "doctor": Command("maft_jax.cli.doctor", "what this machine has, for a bug report"),
    "reproduce": Command("maft_jax.cli.reproduce", "fill in the table of published numbers"),
    "shapes-world-study": Command("maft_jax.cli.shapes_world_study", "repeat docs/shapes_world.md"),
    "scaling-page": Command("maft_jax.cli.scaling_page", "repeat docs/scaling.md"),
    "train-tiny-clip": Command("maft_jax.cli.train_tiny_clip", "train the CLIP of the demo"),
}


_BY_MODULE = re.compile(r"python -m (maft_jax\.[\w.]*\w)( --config=(\S+))?")

_called: str | None = None


def note_call(name: str) -> None:
    """Says that this process is `maft-jax NAME`."""
    global _called
    _called = name


def as_called(text: str) -> str:
    """A message in which commands are called as this process was, by their names or by modules."""
    return text if _called is None else _BY_MODULE.sub(_by_name, text)


def _by_name(match: re.Match) -> str:
    module, option, config = match.groups(default="")
    names = {(one.module, one.config): name for name, one in reversed(COMMANDS.items())}
    own = COMMANDS[_called]
    names[own.module, own.config] = _called
    if (module, config) in names:
        return f"{PROGRAM} {names[module, config]}"
    return f"{PROGRAM} {names[module, '']}{option}" if (module, "") in names else match[0]
