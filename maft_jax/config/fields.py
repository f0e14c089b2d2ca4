"""Settings as frozen dataclasses: built of nested dicts, checked, and described for --help."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Container, Mapping

FROM_HERE = "from the working directory"
BELOW_ROOT = "below config.data.root"
"""What a relative path starts from."""


def setting(
    default,
    help_text: str,
    *,
    low=None,
    high=None,
    choices=(),
    path: str = "",
    names: Container[str] = (),
):
    """A field with its meaning, which `--help` prints, and the values it may take.

    `path` is FROM_HERE or BELOW_ROOT where the value is a path: ~ and $HOME in it are expanded.
    `names` are the values that are none all the same, of what the package has.
    """
    allowed = {"help": help_text, "low": low, "high": high, "choices": choices}
    allowed |= {"path": path, "names": names}
    return dataclasses.field(default=default, metadata=allowed)


def build(kind: type, values: dict, where: str, *, complete: bool = True):
    """An instance of a dataclass of settings from nested dicts.

    Without `complete`, fields that are missing have their defaults, if they have some.

    Raises:
        ValueError: names the field, starting with `where`: unknown, missing, of a wrong type, or
            not a value that it may take.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown fields {unknown}; known fields are {sorted(fields)}")
    wanted = [f.name for f in fields.values() if complete or f.default is dataclasses.MISSING]
    if missing := sorted(set(wanted) - set(values)):
        advice = "; start from maft_jax.config.preset()" if complete else ""
        raise ValueError(f"{where}: missing fields {missing}{advice}")
    built = {}
    for name, field in fields.items():
        if name not in values:
            continue
        built[name] = _convert(values[name], field.type, f"{where}.{name}")
        _check_allowed(built[name], field.metadata, f"{where}.{name}")
        if field.metadata.get("path"):
            built[name] = expand_path(built[name])
    return kind(**built)


def expand_path(path: str) -> str:
    """The path with ~, $HOME and other variables resolved; no shell does after "--flag="."""
    return os.path.expanduser(os.path.expandvars(path))


def with_absolute_paths(kind: type, values: Mapping) -> dict:
    """Nested values of a dataclass of settings, with those paths absolute that are FROM_HERE.

    Names, such as random:tiny or a field's own, and addresses such as gs://... stay as they are.
    """
    absolute = {**values}
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if dataclasses.is_dataclass(field.type) and isinstance(value, Mapping):
            absolute[field.name] = with_absolute_paths(field.type, value)
        elif field.metadata.get("path") != FROM_HERE or not isinstance(value, str):
            continue
        elif value and value not in field.metadata["names"] and ":" not in value.split("/")[0]:
            absolute[field.name] = os.path.abspath(value)
    return absolute


def _convert(value, kind, where: str):
    if isinstance(kind, types.UnionType):  # such as int | None
        kinds = typing.get_args(kind)
        kind = type(None) if value is None and type(None) in kinds else kinds[0]
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a section of settings, got {value!r:.80}")
        return build(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {value!r:.80}")
        element = typing.get_args(kind)[0]
        return tuple(_convert(item, element, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _check_allowed(value, allowed, where: str) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if allowed.get("choices") and item not in allowed["choices"]:
            raise ValueError(f"{where}: expected one of {list(allowed['choices'])}, got {item!r}")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{where}: expected a finite number, got {item}")
        for bound, name in ((allowed.get("low"), "at least"), (allowed.get("high"), "at most")):
            if bound is not None and not (item >= bound if name == "at least" else item <= bound):
                raise ValueError(f"{where}: expected {name} {bound}, got {item}")


def describe_fields(kind: type, prefix: str) -> str:
    """One line per field with its default and meaning, for `--help`."""
    lines = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            lines.append(f"\n{prefix}{field.name}: {field.metadata['help']}")
            lines.append(describe_fields(field.type, f"{prefix}{field.name}."))
        else:
            default = str(field.default)
            default = default if len(default) < 40 else default[:36] + " ..."
            meaning = field.metadata["help"]
            if choices := field.metadata["choices"]:
                meaning += f" ({', '.join(choices)})"
            lines.append(f"  {prefix}{field.name}={default}\n      {meaning}")
    return "\n".join(lines)


def field_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields, those of sections included."""
    names = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            names += field_names(field.type, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name}")
    return names
