"""Models in object stores and behind web servers, through fsspec: what is there, and copies of it in a local cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final
from urllib.parse import urlsplit, urlunsplit

from ..cache import default_cache
from ..errors import CheckpointError, NothingThereError, SculptError, first_line, installs
from ..file_kinds import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from ..progress import NOTE, Progress
from .choose import ADAPTER, WHOLE, indexed, needed, split
from .names import Url, size_told, told_place, without_secrets
from .pointer import Pointer, make_shell
from .retry import retried, status_of
from .settings import Shown, home_of, refuse_full_disk

logger = logging.getLogger(__name__)
CHUNK = 1 << 24  # bytes of one request
AT_ONCE = 4
PACKAGES = {  # a scheme's protocol of fsspec, the package that speaks it, and the extra that installs that
    "s3": ("s3", "s3fs", "s3"),
    "gs": ("gs", "gcsfs", "gs"),
    "az": ("abfs", "adlfs", "az"),
    "abfs": ("abfs", "adlfs", "az"),
    "abfss": ("abfs", "adlfs", "az"),
    "http": ("http", "aiohttp", "https"),
    "https": ("http", "aiohttp", "https"),
}
KEYS = {
    "s3": "AWS's own variables say who asks, such as `AWS_PROFILE`; a public bucket takes `FSSPEC_S3_ANON=true`",
    "gs": "`gcloud auth application-default login` or `GOOGLE_APPLICATION_CREDENTIALS` says who asks",
    "az": "`AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY`, or a SAS token, say who asks",
}
# What a folder behind a web server may hold: it cannot be listed.
BESIDE = (
    *(CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json", "README.md"),
)


@final
@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file in a store: its place there, bytes, and what changes with its content."""

    place: str
    nbytes: int
    etag: str


def stores(url: Url) -> Any:
    """Return what speaks to the store of a URL.

    Raises:
        SculptError: A package is missing.
    """
    protocol, package, extra = PACKAGES[url.scheme]
    try:
        import fsspec

        __import__(package)
        return fsspec.filesystem(protocol)
    except ImportError as error:
        missing = "fsspec" if error.name == "fsspec" else package
        raise SculptError(
            f"`{url}` needs `{missing}`, which is not installed",
            hint=installs(extra),
        ) from error


def path_in_store(url: Url) -> str:
    """Return what a store calls a place."""
    from fsspec.core import strip_protocol

    return strip_protocol(url.text.rstrip("/"))


@contextmanager
def asking(url: Url) -> Iterator[None]:
    """Ask a store in a block, and tell what goes wrong in one sentence.

    Raises:
        CheckpointError: It went wrong.
    """
    try:
        yield
    except SculptError:
        raise
    except Exception as error:  # of whichever library, or the file system
        raise _told(error, url) from error


def _told(error: Exception, url: Url) -> CheckpointError:
    status, kind = status_of(error), type(error).__name__
    said = without_secrets(first_line(error)) or kind
    keys = KEYS.get({"abfs": "az", "abfss": "az"}.get(url.scheme, url.scheme))
    if status in (401, 403) or isinstance(error, PermissionError) or "Credential" in kind:
        return CheckpointError(f"`{url}` may not be read: {said}", hint=keys)
    if status is not None and status >= 429:
        return CheckpointError(
            f"the server of `{url}` fails, by status {status}", hint="try again later; what was fetched stays"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return NothingThereError(f"`{url}` does not exist")
    return CheckpointError(f"cannot fetch `{url}`: {said}", hint="is there a network? what was fetched stays")


def listed(url: Url) -> dict[str, Stored]:
    """Return the files of a place by their names within it; of one file, by its own name alone.

    Raises:
        CheckpointError: There is nothing, or it cannot be looked at.
    """
    store = stores(url)
    with asking(url):
        store.invalidate_cache()
        if url.scheme in ("http", "https"):
            found = _probed(store, url)
        else:
            root = path_in_store(url)
            every = retried(lambda: store.find(root, detail=True), str(url))
            found = {
                str(PurePosixPath(place).relative_to(root)) if place != root else url.name: stored_of(place, info)
                for place, info in every.items()
                if info["type"] == "file" and not place.endswith("/")
            }
        if not found:
            raise FileNotFoundError(url.text)
    return found


def stored_of(place: str, info: Mapping[str, Any]) -> Stored:
    """Return a file as a store describes it."""
    marks = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")
    mark = next((str(info[key]) for key in marks if info.get(key)), "")
    if info.get("size") is None:
        raise CheckpointError(f"the server does not say how large `{told_place(place)}` is")
    return Stored(place=place, nbytes=int(info["size"]), etag=mark.strip('"'))


def _probed(store: Any, url: Url) -> dict[str, Stored]:
    """Return what a web server has of a model: the file that is named, or in a folder what one is made of."""

    def look(place: str) -> Stored | None:
        try:
            return stored_of(place, retried(lambda: store.info(place), place))
        except FileNotFoundError as error:
            if (status_of(error) or 404) in (404, 410):
                return None
            raise

    if PurePosixPath(urlsplit(url.text).path).suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"):
        own = look(url.text)
        return {} if own is None else {url.name: own}
    parts = urlsplit(url.text)
    folder = parts.path.rstrip("/")

    def place_of(name: str) -> str:
        return urlunsplit((parts.scheme, parts.netloc, f"{folder}/{name}", parts.query, parts.fragment))

    names = [*WHOLE, ADAPTER_CONFIG, *ADAPTER, *BESIDE]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked = zip(names, pool.map(look, map(place_of, names)), strict=True)
        found = {name: own for name, own in looked if own is not None}
    index = next((name for name in WHOLE if name in found), "")
    if index.endswith(".json"):
        shards = indexed(told_place(place_of(index)), content(store, found[index]))
        others = sorted(name for name in shards if PurePosixPath(name).name == name)
        found |= {name: own for name in others if (own := look(place_of(name))) is not None}
    has_weights = index or any(name in found for name in ADAPTER)
    return found if has_weights else {}


def read_range(store: Any, stored: Stored, start: int, stop: int) -> bytes:
    """Return bytes `start … stop − 1` of a file, asked for again where a network fails."""

    def ask() -> bytes:
        found = store.cat_file(stored.place, start=start, end=stop)
        if len(found) == stored.nbytes and (start, stop) != (0, stored.nbytes):  # a server without ranges
            found = found[start:stop]
        if len(found) != stop - start:
            raise ConnectionError(f"{len(found)} bytes came in place of {stop - start}")
        return found

    return retried(ask, stored.place)


def content(store: Any, stored: Stored) -> bytes:
    """Return a whole file."""
    return read_range(store, stored, 0, stored.nbytes) if stored.nbytes else b""


def by_ranges(url: Url) -> tuple[Path, str]:
    """Return a folder or file in the local cache that stands for a place, read by ranges; and its version.

    A copy of the same state is taken in its place, if there is one.

    Raises:
        CheckpointError: It cannot be had.
    """
    found = chosen(url, listed(url))
    version = version_of(found)
    is_file = len(found) == 1 and url.name in found
    copy = home_of(url.told, version) / (url.name or "model")
    if all(_is_there(copy if is_file else copy / name, stored) for name, stored in found.items()):
        return copy, version
    home = home_of(url.told, f"{version} by ranges")
    folder = home / (url.name or "model")
    store = stores(url)
    with asking(url), only_one(home):
        weights = list(found) if is_file else split(found, lambda name: content(store, found[name]))[0]
        pointers = {
            name: Pointer(place=store.unstrip_protocol(stored.place), nbytes=stored.nbytes, etag=stored.etag)
            for name, stored in found.items()
            if name in weights and name.endswith(".safetensors")
        }
        others = {name: stored.nbytes for name, stored in found.items() if name not in pointers}
        total = sum(pointer.nbytes for pointer in pointers.values())
        logger.log(NOTE, "%s: %s are read by ranges, with no copy here", url, size_told(total))
        make_shell(home if is_file else folder, pointers, others, lambda name: content(store, found[name]))
    return folder, version


def chosen(url: Url, files: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the files that are needed of a place."""
    if len(files) == 1 and url.name in files:
        return dict(files)
    store = stores(url)
    with asking(url):
        names = needed(files, lambda name: content(store, files[name]))
    return {name: files[name] for name in names}


def version_of(files: Mapping[str, Stored]) -> str:
    """Return what changes where any of the files does: of one file its ETag, of several a digest of theirs."""
    if len(files) == 1:
        return next(iter(files.values())).etag
    marks = sorted([name, stored.nbytes, stored.etag] for name, stored in files.items())
    return f"sha256:{hashlib.sha256(json.dumps(marks).encode()).hexdigest()}"


def copied(url: Url) -> tuple[Path, str]:
    """Copy what is needed of a place into the local cache; return where it is, and its version.

    Raises:
        CheckpointError: It cannot be had, or changed meanwhile.
    """
    found = chosen(url, listed(url))
    version = version_of(found)
    home = home_of(url.told, version)
    folder = home / (url.name or "model")
    is_file = len(found) == 1 and url.name in found
    where = home if is_file else folder
    store = stores(url)
    with asking(url), only_one(home):
        missing = {name: stored for name, stored in found.items() if not _is_there(where / name, stored)}
        if missing:
            total = sum(stored.nbytes for stored in missing.values())
            told = size_told(total)
            logger.log(NOTE, "%s: copying %s in %d files into %s", url, told, len(missing), default_cache() / "places")
            held = sum(part.stat().st_size for part in where.rglob("*.part")) if where.exists() else 0
            hint = "`stream` reads it without a copy; `SCULPT_CACHE` puts the cache elsewhere"
            refuse_full_disk(url, "the local cache", where, total, hint=hint, options=["stream"], held=held)
            with Shown.bars(f"copying {url.name}") as report:
                _copy(store, missing, where, total, report)
            try:
                refuse_changed(url, missing)
            except CheckpointError:
                shutil.rmtree(home, ignore_errors=True)  # it may be of two states
                raise
    return folder, version


def refuse_changed(url: Url, before: Mapping[str, Stored]) -> None:
    """Raise CheckpointError where a file of a place is not what it was when it was listed."""
    store = stores(url)
    store.invalidate_cache()
    for stored in before.values():
        if stored_of(stored.place, retried(lambda stored=stored: store.info(stored.place), stored.place)) != stored:
            raise CheckpointError(
                f"`{told_place(stored.place)}` changed while it was read",
                hint="run the command again once nothing writes to it",
            )


def _copy(store: Any, files: Mapping[str, Stored], where: Path, total: int, report: Progress) -> None:
    done, lock, stopped = 0, threading.Lock(), threading.Event()

    def note(nbytes: int, name: str) -> None:
        nonlocal done
        with lock:
            done += nbytes
            report(done, total, name)

    def copy(name: str, stored: Stored) -> None:
        file = where / name
        part = file.with_name(f"{file.name}.part")
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            start = stream.tell()
            if start > stored.nbytes or not stored.etag:  # nothing tells of which state the part is
                start = 0
                stream.truncate(0)
            note(start, name)
            while start < stored.nbytes and not stopped.is_set():
                stop = min(start + CHUNK, stored.nbytes)
                stream.write(read_range(store, stored, start, stop))
                note(stop - start, name)
                start = stop
        if start == stored.nbytes:
            os.replace(part, file)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(copy, name, stored) for name, stored in files.items()]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _is_there(file: Path, stored: Stored) -> bool:
    return bool(stored.etag) and file.is_file() and file.stat().st_size == stored.nbytes


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Keep other processes out of a folder of the cache while it is filled; they wait."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as stream:
        with suppress(ImportError, OSError):  # without locks two copies are made, of the same bytes
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
