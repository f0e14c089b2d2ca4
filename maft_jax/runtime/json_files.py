"""JSON that others wrote: bounded, of finite numbers, and of the kind that is expected."""

import json
import math
import os
from typing import Any

from etils import epath

from input_pipeline.limits import MAX_JSON_BYTES, check_limit


def read_json(path: str | os.PathLike, kind: type | tuple[type, ...] = dict) -> Any:
    """The document in a file, an instance of `kind`.

    Raises:
        ValueError: begins with the path; as parse_json, or the file cannot be read.
    """
    path = epath.Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not readable: {error.strerror or error}") from error
    return parse_json(content, str(path), kind)


def parse_json(content: str | bytes, where: str, kind: type | tuple[type, ...] = dict) -> Any:
    """The document, an instance of `kind`.

    Raises:
        ValueError: begins with `where`: no JSON, nested too deeply, larger than the limit, with
            NaN, infinities or numbers that would become such, or of another kind.
    """
    check_limit(MAX_JSON_BYTES, len(content), f"{where}: bytes of JSON")
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"{where}: not readable as JSON: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and integers of 5,000 digits, too
        raise ValueError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join({dict: "object", list: "list"}.get(k, k.__name__) for k in kinds)
        raise ValueError(f"{where}: expected a JSON {names}, got {type(value).__name__}")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"expected finite numbers, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(f"{text:.40}")
