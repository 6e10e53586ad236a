"""Parts of messages: text, images, video and sound, in the forms that people write, as one form.

`{"type": "image", "image": source}` and its like for `video` and `audio`; a part that names no source stands for the
next that the row names beside its messages. Sources are paths, data URLs, bytes or arrays; `media.py` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..fusion.errors import DataError

MEDIA = ("image", "video", "audio")
# As OpenAI, Qwen and transformers write them.
KINDS = {
    **{kind: kind for kind in MEDIA},
    **{f"{kind}_url": kind for kind in MEDIA},
    **{f"input_{kind}": kind for kind in MEDIA},
}
TEXTS = ("text", "input_text", "output_text")
SOURCES = ("bytes", "base64", "data", "array", "url", "path", "file")
ENCODED = ("base64", "data")
PLACE = re.compile(r"<(image|video|audio)>\n?")  # where data sets such as LLaVA's have them in a text


def with_parts(messages: Sequence[Mapping[str, Any]], beside: Mapping[str, list[Any]], what: str) -> list[dict]:
    """Return messages whose media are parts with a source each, those beside the messages included.

    Raises:
        DataError: A part is of no known type, or places and media are not as many.
    """
    found = [{key: value for key, value in message.items() if value is not None} for message in messages]
    waiting = {kind: list(sources) for kind, sources in beside.items()}
    for message in found:
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [_part(part, what) for part in content]
        elif isinstance(content, str) and waiting and PLACE.search(content):
            message["content"] = _split(content, waiting)
    parts = [part for message in found for part in parts_of(message)]
    for kind in MEDIA:
        places = [part for part in parts if part["type"] == kind and kind not in part]
        sources = waiting.pop(kind, [])
        own = [part for part in parts if part["type"] == kind and kind in part]
        if not places and sources and not own:
            _before_the_first(found, kind, sources)
            continue
        if len(places) != len(sources) and not (own and not places):  # named in the messages and beside them
            raise DataError(f"{what} has {len(sources)} of `{kind}`, and its messages have places for {len(places)}")
        for part, source in zip(places, sources, strict=False):
            part[kind] = source
    return found


def _part(part: Any, what: str) -> dict[str, Any]:
    """Return a part of known type, with its source if it names one; keys that hold nothing are Arrow's filling."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise DataError(f"{what} has a message with a part that is {type(part).__name__}")
    part = {key: value for key, value in part.items() if value is not None}
    name = part.get("type") or next((key for key in (*KINDS, "text") if key in part), None)
    if isinstance(name, str) and name in TEXTS:
        return {**part, "type": "text", "text": part.get("text", "")}
    if not isinstance(name, str) or name not in KINDS:
        raise DataError(f"{what} has a message with a part of type `{name}`; known are text, {', '.join(KINDS)}")
    kind = KINDS[name]
    source = _source(part, (name, kind, f"{kind}_url", *SOURCES))
    while isinstance(source, Mapping) and "array" not in source:
        source = _source(source, SOURCES)
    rest = {key: value for key, value in part.items() if key not in (*KINDS, *SOURCES)}
    return {**rest, "type": kind} if source is None else {**rest, "type": kind, kind: source}


def _source(named: Mapping[str, Any], keys: Sequence[str]) -> Any:
    key = next((key for key in keys if named.get(key) is not None), None)
    source = None if key is None else named[key]
    return f"data:;base64,{source}" if key in ENCODED and isinstance(source, str) else source


def _split(text: str, waiting: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the parts of a text with places such as `<image>` in it, for media that the row names."""
    found: list[dict[str, Any]] = []
    start = 0
    for place in PLACE.finditer(text):
        if place[1] not in waiting:
            continue
        found += [{"type": "text", "text": text[start : place.start()]}] if place.start() > start else []
        found.append({"type": place[1]})
        start = place.end()
    return [*found, {"type": "text", "text": text[start:]}] if start < len(text) else found


def _before_the_first(messages: Sequence[dict[str, Any]], kind: str, sources: Sequence[Any]) -> None:
    """Put media that no message has a place for before what the user says first."""
    first = next((message for message in messages if message.get("role") == "user"), messages[0])
    content = first.get("content")
    said = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    first["content"] = [*({"type": kind, kind: source} for source in sources), *said]


def parts_of(message: Any) -> list[dict[str, Any]]:
    """Return the parts of a message's content; none where that is text."""
    content = message.get("content")
    return content if isinstance(content, list) else []


def in_order(messages: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the sources of the media of messages, by kind."""
    parts = [part for message in messages for part in parts_of(message)]
    found = {kind: [part[kind] for part in parts if part["type"] == kind] for kind in MEDIA}
    return {kind: sources for kind, sources in found.items() if sources}
