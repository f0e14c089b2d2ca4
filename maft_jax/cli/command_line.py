"""What commands share: flags parsed, refused in one line, and --help that ends well."""

import dataclasses
import sys
from collections.abc import Callable

from absl import app, flags

from maft_jax.config.fields import expand_path
from maft_jax.config.sections import ModelConfig
from maft_jax.runtime import stop_requests
from maft_jax.runtime.command_names import as_called
from maft_jax.runtime.console import failed

flags.disclaim_key_flags()  # --help lists what is defined here with the module that asked for it


class _PathParser(flags.ArgumentParser):
    """Expands ~ and $HOME, which no shell does after "--flag="."""

    def parse(self, argument: str) -> str:
        return expand_path(argument)


def define_path(name: str, default: str | None, help_text: str) -> flags.FlagHolder:
    """A flag that is a file or folder."""
    return flags.DEFINE(_PathParser(), name, default, help_text)


def define_paths(name: str, help_text: str) -> flags.FlagHolder:
    """A flag that may be given several times, each a file, folder or pattern."""
    return flags.DEFINE_multi(_PathParser(), flags.ArgumentSerializer(), name, [], help_text)


def run(main: Callable[[list[str]], int], check: Callable[[list[str]], list[str]]) -> None:
    """Calls `main` with what is no flag, and exits with its code.

    The module that calls this prints its docstring for --help.

    Args:
        check: gets what is no flag and returns it, perhaps changed; its ValueError becomes a short
            message and exit code 2.
    """
    stop_requests.watch()
    leave_with_help_if_asked()
    app.run(
        lambda arguments: stop_requests.leave(main(arguments)),
        flags_parser=lambda argv: parse(argv, check),
    )


def leave_with_help_if_asked() -> None:
    """Prints the docstring of the module that is run, and its flags."""
    if {"--help", "-help", "-h"} & set(sys.argv):
        program = sys.modules["__main__"]
        program.__doc__ = as_called(program.__doc__)
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)  # absl itself would end with 1


def parse(argv: list[str], check: Callable[[list[str]], list[str]]) -> list[str]:
    """What `check` returns; anything that absl or it refuses ends with code 2."""
    try:
        return check(flags.FLAGS(argv)[1:])
    except (flags.Error, ValueError) as error:
        sys.exit(failed(str(error).strip(), 2))


def flags_alone(arguments: list[str]) -> list[str]:
    """A `check` that refuses whatever is no flag."""
    if arguments:
        raise ValueError(f"expected flags alone, got {arguments}; --help lists them")
    return arguments


def define_stated_flags(of: str) -> Callable[[], dict]:
    """Flags for what weights and runs do not tell of themselves; returns what reads them.

    Args:
        of: the weights, in the flags' help.
    """
    activation = flags.DEFINE_enum(
        "activation",
        None,
        ["quick_gelu", "gelu", "gelu_tanh"],
        f"of {of}, where neither their format nor a settings file beside them says",
    )
    head_width = flags.DEFINE_integer(
        "head_width", None, f"of the image tower's attention in {of}, likewise", lower_bound=1
    )
    tokenizer = define_path(
        "tokenizer", None, f"file of the tokenizer of {of}, if not CLIP's and not beside them"
    )
    step = flags.DEFINE_integer("step", None, "checkpoint of a training run; default: the newest")
    pretrained = define_path(
        "pretrained", None, "where the weights that a training run began with are now, if moved"
    )
    stated = (activation, head_width, tokenizer, step, pretrained)
    return lambda: {flag.name: flag.value for flag in stated}


def define_masking_flags() -> Callable[[], dict]:
    """Flags for how images and masks are read; returns what reads them, for maft_jax.load."""
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}

    def define_choice(name: str, default: str | None, help_text: str) -> flags.FlagHolder:
        choices = [choice for choice in fields[name].metadata["choices"] if choice]
        return flags.DEFINE_enum(name, default, choices, help_text)

    def define_integer(name: str, lowest: int, help_text: str) -> flags.FlagHolder:
        return flags.DEFINE_integer(name, None, help_text, lower_bound=lowest)

    defined = (
        define_integer("mask_start_layer", 0, "instead of what the weights say"),
        define_integer("image_size", 1, "pixels per side at which CLIP reads, likewise"),
        define_choice(
            "image_aspect",
            "squash",
            "squash = image_size squared; keep = the short side becomes that, the ratio stays",
        ),
        define_choice("mask_pooling", None, "of towers that pool: which cells a mask reads"),
        define_choice("mask_rule", None, "of towers with class tokens: what proposals read"),
        define_integer("class_token", 0, "of towers with several: the one matched with text"),
    )
    return lambda: {flag.name: flag.value for flag in defined}
