"""Damage to small valid files, from a seed: bits, bytes, sizes, numbers, structure."""

import io
import json
import random
import re
import zipfile
from collections.abc import Callable

_NUMBERS = (0, -1, 1, 2**31, 2**62, 2**63, 2**64 - 1, 10**9, 10**30, 1e308, -0.5)
_ODD = (*_NUMBERS, None, True, False, "", "7", "\ud800", "x" * 3000, [], {}, [[]], {"a": {}})
_TOKENS = (b"NaN", b"-Infinity", b"1e999", b"null", b"9" * 5000, b"[" * 3000, b"\x00", b"\xff")
_SIZES = tuple(n.to_bytes(8, "little") for n in (0, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1))

Mutation = Callable[[bytes, random.Random], bytes]


def damage(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes; of text also of its numbers."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_CHANGES)(content, rng)
    return content


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """One value anywhere becomes an odd one, or is removed or doubled; it stays JSON, mostly."""
    if rng.random() < 0.2:
        return damage(content, rng)
    document = json.loads(content)
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(_ODD)).encode()
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.15:
        del parent[key]
    elif action < 0.25 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif action < 0.4 and isinstance(parent[key], str | int | float):
        parent[key] = f"{parent[key]}"[::-1]
    else:
        parent[key] = rng.choice(_ODD)
    encoded = json.dumps(document).encode("utf-8", "surrogatepass")
    return encoded.replace(b"1e+308", b"1e999") if rng.random() < 0.2 else encoded


def inside_zip(change: Mutation) -> Mutation:
    """The change to a member, packed again with the right checksum."""

    def changed(content: bytes, rng: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members))
        members[name] = change(members[name], rng)
        packed = io.BytesIO()
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(packed, "w", compression) as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        return packed.getvalue()

    return changed


def inside_header(content: bytes, rng: random.Random) -> bytes:
    """A change to the JSON header of a safetensors file, whose length is put right."""
    size = int.from_bytes(content[:8], "little")
    header = damage_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def inside_metadata(content: bytes, rng: random.Random) -> bytes:
    """A change to the JSON that is a text in the metadata of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header["__metadata__"]
    name = max(metadata, key=lambda name: len(metadata[name]))
    metadata[name] = damage_json(metadata[name].encode(), rng).decode("utf-8", "replace")
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    at, new = rng.randrange(len(content) + 1), rng.choice((*_SIZES, *_TOKENS, bytes(40)))
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((*_TOKENS, rng.randbytes(9))) + content[at:]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content) + 1)
    return content[:begin] + content[begin + rng.randrange(1, 30) :]


def _double(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content) + 1)
    end = begin + rng.randrange(1, 200)
    return content[:end] + content[begin:]


def _renumber(content: bytes, rng: random.Random) -> bytes:
    """A number in text becomes another one."""
    found = list(re.finditer(rb"\d+(\.\d+)?", content))
    if not found:
        return _flip(content, rng)
    match = rng.choice(found)
    new = rng.choice((*_TOKENS[:5], *(str(number).encode() for number in _NUMBERS)))
    return content[: match.start()] + new + content[match.end() :]


_CHANGES = (_flip, _flip, _overwrite, _insert, _cut, _remove, _double, _renumber)
