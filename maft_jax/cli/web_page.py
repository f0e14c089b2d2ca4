"""Serves a web page that segments pictures by names: drop a picture, type names, slide, hover.

    pip install 'maft_jax[demo]'
    python -m maft_jax.cli.web_page --weights=tuned.safetensors

It prints the address to open, at first http://127.0.0.1:7860, and runs until Ctrl-C. Nothing
leaves this machine: the page loads nothing from elsewhere, and what was uploaded is deleted at the
end. --host=0.0.0.0 lets other machines of the network open it too; --auth=NAME asks them for that
name and a password. --share asks gradio for a public link: its program is fetched from the
internet, and whoever has the link can use the page, through gradio's servers.

Exit codes: 0 done, 1 failed (such as: the port is taken), 2 wrong input, 130 and 143 stopped.
"""

import os
import secrets
import socket

from absl import flags

from maft_jax.cli import command_line, generator_flags
from maft_jax.runtime.console import log_to_stderr, run_and_report

_WEIGHTS = command_line.define_path(
    "weights",
    None,
    "CLIP of any known format, tuned or not, the workdir of a training run, or a name that is "
    "downloaded once: hf:OWNER/NAME, openai:ViT-B/16",
)
_stated = command_line.define_stated_flags("the weights")
_masking = command_line.define_masking_flags()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; 0.0.0.0 is all of them")
_PORT = flags.DEFINE_integer(
    "port",
    None,
    "port to listen at; default: the first free one from 7860 on",
    lower_bound=1,
    upper_bound=65535,
)
_SHARE = flags.DEFINE_bool("share", False, "also a public link, through gradio's servers")
_AUTH = flags.DEFINE_string(
    "auth",
    "",
    "name that the page asks for, with the password MAFT_JAX_PAGE_PASSWORD of the environment, or "
    "a new one that is printed",
)
_CLASSES = flags.DEFINE_string("classes", "", "what the field holds at first")
_BACKGROUND = flags.DEFINE_string("background", "", "what the field holds at first")
_generator = generator_flags.define(
    ["superpixels", "transformers", "mask2former", "maskformer", "freeseg"],
    "superpixels",
    "weights of the other generators, of freeseg by default those of --weights",
    _WEIGHTS,
)
_NUM_PROPOSALS = flags.DEFINE_integer(
    "num_proposals", 100, "where the slider stands at first", lower_bound=1
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "auto",
    ["auto", "bfloat16", "float32"],
    "of matrix products; auto = bfloat16, on a CPU float32",
)


def main(argv: list[str]) -> int:
    """Serves, and returns the exit code."""
    del argv
    log_to_stderr()
    return run_and_report(_serve)


def _serve() -> None:
    _check_address()
    # Imported late: --help and wrong flags answer at once.
    import maft_jax
    from maft_jax.models.encoder_setup import compute_dtype
    from maft_jax.web_page import make_page, serve_page, temporary_folder

    generator_of = _generator.make_for_any_names()
    dtype = compute_dtype(_COMPUTE_DTYPE.value).name
    clip = maft_jax.load(_WEIGHTS.value, compute_dtype=dtype, **_masking(), **_stated())
    with temporary_folder() as folder:
        page = make_page(
            clip,
            _WEIGHTS.value,
            folder,
            classes=_CLASSES.value,
            background=_BACKGROUND.value,
            num_proposals=_NUM_PROPOSALS.value,
            generator_of=generator_of,
        )
        serve_page(page, _HOST.value, _PORT.value, _SHARE.value, _name_and_password())


def _name_and_password() -> tuple[str, str] | None:
    """A password is no flag, for other users of the machine see those."""
    if not _AUTH.value:
        return None
    if password := os.environ.get("MAFT_JAX_PAGE_PASSWORD"):
        return _AUTH.value, password
    password = secrets.token_urlsafe(12)
    print(f"name {_AUTH.value}, password {password}", flush=True)
    return _AUTH.value, password


def _check_address() -> None:
    """Refuses what cannot be listened at before the weights are read."""
    try:
        socket.create_server((_HOST.value, _PORT.value or 0)).close()
    except OSError as error:
        raise OSError(f"--host={_HOST.value} --port={_PORT.value}: {error.strerror}") from error


def check_arguments(arguments: list[str]) -> list[str]:
    """Raises ValueError where weights are missing, or something is no flag."""
    if arguments:
        raise ValueError(f"unexpected {arguments}; --help lists the flags")
    if not _WEIGHTS.value:
        raise ValueError("expected --weights=tuned.safetensors; --help says more")
    return arguments


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, check_arguments)


if __name__ == "__main__":
    run()
