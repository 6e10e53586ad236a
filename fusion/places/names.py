"""How a place that is not on this machine's disk is written: `org/model@revision:inside`, `s3://…`, `https://…`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final
from urllib.parse import unquote, urlsplit, urlunsplit

from ..file_kinds import WEIGHT_SUFFIXES

HUB_ID = re.compile(
    r"(?P<explicit>hf:/+)?(?P<repository>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?(:(?P<inside>[^:]+))?"
)
# One slash is left of two where a path was made of it.
URL = re.compile(r"(?P<scheme>s3|gs|gcs|az|abfs|abfss|https?|file):/+(?P<rest>.*)", re.DOTALL)
NO_MODELS = (*WEIGHT_SUFFIXES, ".json", ".jsonl", ".yaml", ".yml", ".txt", ".csv", ".parquet", ".md")


@final
@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model of the hub.

    Attributes:
        repository: `org/model`, or of very old models one word.
        revision: A branch, tag or commit; None is the main branch.
        inside: A folder or file in it, or None.
        explicit: Whether it was written `hf://…`, so that it can be nothing else.
    """

    repository: str
    revision: str | None = None
    inside: str | None = None
    explicit: bool = False

    @property
    def may_be_fetched(self) -> bool:
        """Whether the hub may be asked: not for one word, or what has a file's ending; that is a slip in a path."""
        return self.explicit or ("/" in self.repository and not self.repository.lower().endswith(NO_MODELS))

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repository}{revision}{'' if self.inside is None else f':{self.inside}'}"


def hub_name(asked: str) -> HubName | None:
    """Return what a text names on the hub, if it could be a name there."""
    found = HUB_ID.fullmatch(asked)
    if found is None:
        return None
    inside = found["inside"]
    if inside is not None and any(part in ("", ".", "..") for part in inside.rstrip("/").split("/")):
        return None
    return HubName(
        repository=found["repository"],
        revision=found["revision"],
        inside=None if inside is None else inside.rstrip("/"),
        explicit=found["explicit"] is not None,
    )


def size_told(nbytes: int) -> str:
    """Return bytes for people."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"


# A URL in a sentence: its scheme, who asks, the place, and what is asked of it.
IN_TEXT = re.compile(r"([a-z]+://)(?:[^\s/'\"`<>()]*@)?([^\s?#'\"`<>()]*)(?:[?#][^\s'\"`<>()]*)?")


@final
@dataclass(frozen=True, kw_only=True)
class Url:
    """A folder or file in an object store or behind a web server; `text` as it is asked for there."""

    scheme: str
    text: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return unquote(urlsplit(self.text).path.rstrip("/").rpartition("/")[2]) or urlsplit(self.text).netloc

    @property
    def told(self) -> str:
        """The place without what nobody is to see: passwords, and keys in a query."""
        return told_place(self.text)

    def __str__(self) -> str:
        return self.told


def told_place(place: str) -> str:
    """Return what a store calls a place, without what nobody is to see: passwords, and keys in a query."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(text: str) -> str:
    """Return what a library says, its URLs without what nobody is to see."""
    return IN_TEXT.sub(r"\1\2", text)


def url_of(asked: str) -> Url | None:
    """Return the place that a text names by a URL, or None."""
    found = URL.fullmatch(asked)
    if found is None or not found["rest"]:
        return None
    scheme = {"gcs": "gs"}.get(found["scheme"], found["scheme"])
    slashes = "/" if scheme == "file" else ""
    return Url(scheme=scheme, text=f"{scheme}://{slashes}{found['rest']}")


def file_of(url: Url) -> Path:
    """Return the path that a URL of this disk, `file://…`, stands for."""
    from urllib.request import url2pathname  # which has a web client imported

    return Path(url2pathname(urlsplit(url.text).path))
