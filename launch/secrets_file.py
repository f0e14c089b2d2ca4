"""Tokens for the training, in a file: they never become arguments, metadata or log lines."""

import pathlib
import re


def check_secrets_file(path: str) -> list[str]:
    """Names of the variables that a file of NAME=value lines sets.

    Raises:
        ValueError: it is not there, others can read it, or a line is something else. The message
            never has a value.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"--env_file={path}: there is no such file; expected NAME=value lines")
    if file.stat().st_mode & 0o077:
        raise ValueError(f"--env_file={path}: others may read it; first: chmod 600 {path}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:  # whose own text has bytes of the file
        raise ValueError(
            f"--env_file={path}: expected UTF-8 text, got another byte at {error.start}; save it "
            "as UTF-8"
        ) from None
    names = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, _ = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(
                f"--env_file={path}, line {number}: expected NAME=value, without export or quotes"
            )
        names.append(name)
    return names
