"""Dicts and lists as YAML, without a library: every string is quoted as JSON, which YAML reads."""

import json


def to_yaml(value: dict | list, indent: int = 0) -> str:
    """Block style, one entry a line."""
    pad = " " * indent
    lines = []
    entries = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in entries:
        start = f"{pad}- " if key is None else f"{pad}{key}: "
        if not isinstance(item, dict | list) or not item:
            lines.append(start + json.dumps(item))
        elif key is None:
            nested = to_yaml(item, indent + 2)
            lines.append(start + nested[indent + 2 :])
        else:
            lines += [start.rstrip(), to_yaml(item, indent + 2)]
    return "\n".join(lines)
