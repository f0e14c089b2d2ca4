"""Class lists in JSON and YAML documents."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from input_pipeline.class_list_formats.listed_class import WRITE_LINES, ListedClass, read_thing

_LONGEST_YAML = 2**18
_DEEPEST_YAML = 32
_NAMES_KEY = re.compile(r"^names\s*:", re.MULTILINE)

Found = tuple[list[ListedClass], str]
"""The classes, and what the list was taken for."""


def read_json(text: str, where: str) -> Found | None:
    """COCO's categories, `id2label` and other mappings, or a list of names; None if no JSON."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        content = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: begins like JSON, but {error}; correct it, or {WRITE_LINES}"
        ) from None
    if isinstance(content, dict) and "categories" in content:
        return _categories(content["categories"], where), "categories of a COCO JSON"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _categories(content, where), "categories of a COCO JSON"
    if isinstance(content, dict) and "id2label" in content:
        return _mapping(content["id2label"], f"{where}: id2label"), "id2label of a JSON"
    if isinstance(content, dict) and isinstance(content.get("labels"), list):
        return _labels(content["labels"], f"{where}: labels"), "labels of a Mapillary JSON, from 0"
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        return _titles(content["classes"], f"{where}: classes"), "colours -> classes"
    if isinstance(content, dict) and content and all(map(_is_color, content.values())):
        pairs = ((f"{where}[{name!r}]", name, color) for name, color in content.items())
        return [_colored(*pair) for pair in pairs], "colours -> classes"
    if isinstance(content, dict):
        return _mapping(content, where), "a JSON mapping of values and names"
    return _sequence(content, where), "a JSON list of names"


def read_yaml(text: str, where: str) -> Found | None:
    """`names:` of ultralytics, a mapping or a list; None where there is no such key."""
    if not _NAMES_KEY.search(text):
        return None
    if len(text) > _LONGEST_YAML:  # which takes seconds
        raise ValueError(
            f"{where}: expected at most {_LONGEST_YAML} characters of YAML, found {len(text)}; "
            f"{WRITE_LINES}"
        )
    if _depth_of_brackets(text) > _DEEPEST_YAML:  # for each of which the scanner looks at all
        raise ValueError(
            f"{where}: expected at most {_DEEPEST_YAML} brackets inside each other in YAML, found "
            f"more; {WRITE_LINES}"
        )
    import yaml  # takes longer than all other lists

    try:
        # Everything as strings: YAML takes the class `no` for a truth value.
        _refuse_doubles_of_yaml(yaml.compose(text, yaml.BaseLoader))
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where}: has names: like YAML, but {reason}; correct it, or {WRITE_LINES}"
        ) from None
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    place = f"{where}: names"
    listed = _mapping(names, place) if isinstance(names, dict) else _sequence(names, place)
    number = content.get("nc")
    if number is not None and number != str(len(listed)):
        raise ValueError(f"{place}: expected nc={number} names, found {len(listed)}; correct one")
    return listed, "names of a YAML file"


def _depth_of_brackets(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    """A dict of these; ValueError where a key stands twice, of which json would keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {double!r} stands twice")
    return content


def _refuse_doubles_of_yaml(node: object, seen: set[int] | None = None) -> None:
    """Likewise of a YAML document's nodes, all the way down; what aliases share, once."""
    children, seen = getattr(node, "value", None), set() if seen is None else seen
    if not isinstance(children, list) or id(node) in seen:
        return
    seen.add(id(node))
    pairs = [child for child in children if isinstance(child, tuple)]
    if pairs:
        _without_doubles([(str(key.value), None) for key, _ in pairs])
    for child in children:
        _refuse_doubles_of_yaml(child[1] if isinstance(child, tuple) else child, seen)


def _categories(categories: object, where: str) -> list[ListedClass]:
    if not isinstance(categories, list):
        raise ValueError(f"{where}: expected a list of categories, found {categories!r:.60}")
    listed = []
    for i, category in enumerate(categories):
        place = f"{where}: categories[{i}]"
        if not isinstance(category, dict) or not {"id", "name"} <= category.keys():
            raise ValueError(f"{place}: expected 'id' and 'name', found {category!r:.60}")
        value = _value(category["id"], place)
        color, kind = category.get("color"), category.get("isthing")
        of_rgb = isinstance(color, list) and len(color) == 3
        listed.append(
            ListedClass(
                place,
                value,
                _name(category["name"], place),
                color=tuple(_value(part, f"{place}.color") for part in color) if of_rgb else None,
                is_thing=None if kind is None else read_thing(str(kind), f"{place}.isthing"),
            )
        )
    return listed


def _labels(labels: list, where: str) -> list[ListedClass]:
    """Mapillary Vistas' config.json, whose entries are in the order of their label values."""
    listed = []
    for i, label in enumerate(labels):
        place = f"{where}[{i}]"
        if not isinstance(label, dict) or not _is_color(label.get("color")):
            raise ValueError(
                f"{place}: expected 'readable' and 'color', found {label!r:.60}; {WRITE_LINES}"
            )
        name = _name(label.get("readable", label.get("name")), place)
        color, is_class = tuple(label["color"]), label.get("evaluate", True)
        listed.append(ListedClass(place, i, name, color=color, is_class=bool(is_class)))
    return listed


def _titles(classes: list, where: str) -> list[ListedClass]:
    """Supervisely's meta.json."""
    listed = []
    for i, entry in enumerate(classes):
        place = f"{where}[{i}]"
        color = entry.get("color") if isinstance(entry, dict) else None
        if not isinstance(color, str) or not re.fullmatch("#[0-9a-fA-F]{6}", color):
            raise ValueError(
                f"{place}: expected 'title' and a 'color' such as #ff0000, found {entry!r:.60}; "
                f"{WRITE_LINES}"
            )
        rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
        listed.append(_colored(place, entry.get("title"), rgb))
    return listed


def _colored(place: str, name: object, color: Sequence[int]) -> ListedClass:
    return ListedClass(place, None, _name(name, place), color=tuple(color))


def _is_color(value: object) -> bool:
    """Whether these are red, green and blue."""
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)


def _mapping(content: object, where: str) -> list[ListedClass]:
    """Of values to names, or of names to values."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: expected values and names, found {content!r:.60}")
    if all(isinstance(value, int) for value in content.values()):
        content = {value: name for name, value in content.items()} if _distinct(content) else {}
        if not content:
            raise ValueError(f"{where}: two names have the same value; give each its own")
    listed = []
    for key, name in content.items():
        place = f"{where}[{key!r}]"
        listed.append(ListedClass(place, _value(key, place), _name(name, place)))
    return listed


def _distinct(content: Mapping) -> bool:
    return len(set(content.values())) == len(content)


def _sequence(names: object, where: str) -> list[ListedClass]:
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ValueError(f"{where}: expected a list of names, found {names!r:.60}")
    return [
        ListedClass(f"{where}[{i}]", i, _name(name, f"{where}[{i}]"), value_is_given=False)
        for i, name in enumerate(names)
    ]


def _value(value: object, place: str) -> int:
    of_text = type(value) in (int, str) and re.fullmatch(r"\d{1,9}", str(value).strip())
    if not of_text:
        raise ValueError(
            f"{place}: expected a label value, an integer from 0, found {value!r:.40}; correct it, "
            f"or {WRITE_LINES}"
        )
    return int(value)


def _name(name: object, place: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{place}: expected a class name, found {name!r:.60}; name the class")
    return name.strip()
