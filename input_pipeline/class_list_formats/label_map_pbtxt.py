"""Label maps of TensorFlow's object detection API: `item { id: 1 name: 'cat' }` (.pbtxt)."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from input_pipeline.class_list_formats.documents import Found
from input_pipeline.class_list_formats.listed_class import WRITE_LINES, ListedClass

_BEGINNING = re.compile(r"\s*(?:#[^\n]*\n\s*)*item\s*:?\s*[{<]")
_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<word>[\w.+-]+) | (?P<sign>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_OPENING, _CLOSING = ("{", "<", "["), ("}", ">", "]")


class _Token(NamedTuple):
    line: int
    text: str


def read_pbtxt(text: str, where: str) -> Found | None:
    """The items of the file; None where it does not begin with one.

    `display_name` is the name for people, and goes before `name`, which may be a code of Freebase.
    """
    if not _BEGINNING.match(text):
        return None
    listed, tokens = [], _tokens(text, where)
    for token in tokens:
        opening = next(tokens, token)
        if opening.text == ":":
            opening = next(tokens, token)
        if token.text != "item" or opening.text not in _OPENING:
            raise _unexpected(token, where)
        listed.append(_item(token, tokens, where))
    return listed, "items of a .pbtxt label map"


def _item(start: _Token, tokens: Iterator[_Token], where: str) -> ListedClass:
    """The class of the fields up to the closing bracket."""
    place = f"{where}:{start.line}"
    fields: dict[str, str] = {}
    depth, key, previous = 1, "", start
    for token in tokens:
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if not depth:
            break
        if token.text == ":" and depth == 1:
            key = previous.text
        elif previous.text == ":" and depth == 1:
            if key in fields:
                raise ValueError(f"{where}:{token.line}: {key!r} stands twice; delete one of them")
            fields[key] = token.text
        previous = token
    else:
        raise ValueError(f"{place}: expected the item's closing bracket; add it, or {WRITE_LINES}")
    name = _unquoted(fields.get("display_name") or fields.get("name", ""))
    if not re.fullmatch(r"\d{1,9}", fields.get("id", "")) or not name:
        raise ValueError(
            f"{place}: expected an item with id and name, found {fields or 'none of them'}; add "
            f"what is missing, or {WRITE_LINES}"
        )
    return ListedClass(place, int(fields["id"]), name)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]).strip() if text[:1] in "'\"" else ""


def _tokens(text: str, where: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise _unexpected(_Token(line, text[position : position + 40].split("\n")[0]), where)
        if match.lastgroup:
            yield _Token(line, match[0])
        line += match[0].count("\n")
        position = match.end()


def _unexpected(token: _Token, where: str) -> ValueError:
    return ValueError(
        f"{where}:{token.line}: expected items such as item {{ id: 1 name: 'cat' }}, found "
        f"{token.text!r}; correct the line, or {WRITE_LINES}"
    )
