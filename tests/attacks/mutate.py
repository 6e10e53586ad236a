"""Inputs that are nearly right: seeds with a value, a key, a line or a byte of them changed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

# What readers stumble over. Some of it is no JSON, but Python's own parser takes it.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *(2**31, 2**62, 2**63, 2**64, 10**30, -(2**63), "", " ", "²", "٣", "0", "-1", "1e999", "NaN", "null", "true"),
    *("\ud800", "\x00", "\x1b[2J", "a\nb", "é" * 300, "x" * 5000, "9" * 5000, "../../etc/passwd", "/etc/passwd"),
    *("/dev/zero", "~", ".", "..", "__metadata__", "model.layers.².w", "(.*.*)*x", "((", "{{ 1/0 }}", "*", "[", "%s"),
    *([], {}, [[]], [{}], {"": ""}, {"a": []}, [None], [0, 1], ["a", "b"], {"0": 0}, [[[[[[[[[[0]]]]]]]]]]),
)
WORDS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\\u0000", b"null", b"true", b"-", b"0", b"1e999"),
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"99999999999999999999",
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\n",
        b"\r",
        b"\t",
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
        b"- ",
        b"? ",
        b"|",
        b">",
        b"%YAML 9.9",
        b"---\n",
        b"...\n",
    ),
    *(b"2001-13-45", b"0o7", b"1:60", b"!!binary x", b"!!timestamp x", b"!!set {a}", b"\xef\xbb\xbf", b"#", b"'", b"@"),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from _places(value[index], (*path, index))


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return plain values with one to three of them replaced, removed, moved or called otherwise."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice([*_places(value)])
        if not path:
            if rng.random() < 0.05:
                return copy.deepcopy(rng.choice(NASTY))
            continue
        holder = value
        for part in path[:-1]:
            holder = holder[part]
        last, what = path[-1], rng.random()
        if what < 0.6:
            holder[last] = copy.deepcopy(rng.choice(NASTY))
        elif what < 0.75:
            del holder[last]
        elif what < 0.85 and isinstance(holder, dict):
            holder[str(rng.choice(NASTY))[:300]] = holder[last]
        elif what < 0.95:
            other = rng.choice([*_places(value)])
            found = value
            for part in other:
                found = found[part]
            holder[last] = copy.deepcopy(found)
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
    return value


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them flipped, cut, doubled, or words of the formats put in."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(content) + 1)
        what = rng.random()
        if what < 0.3 and content:
            content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif what < 0.65:
            content[place:place] = rng.choice(WORDS)
        elif what < 0.8:
            del content[place : place + rng.choice((1, 2, 8, 64))]
        elif what < 0.9:
            content[place:place] = content[place : place + rng.choice((1, 8, 64))]
        elif what < 0.95:
            del content[place:]
        else:
            content[place:place] = rng.choice((b"[" * 2000, b"{'a':" * 500, b"9" * 5000, b"- " * 300))
    return bytes(content)


def as_json(value: Any) -> bytes:
    """Return plain values as Python writes them, halves of characters, NaN and all."""
    return json.dumps(value, ensure_ascii=True).encode()


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON with a value changed, or now and then a byte."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if value is None or rng.random() < 0.25:
        return changed_bytes(data, rng)
    return as_json(changed_value(value, rng))


Change = Callable[[bytes, random.Random], bytes]
