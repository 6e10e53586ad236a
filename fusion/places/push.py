"""Uploading an output: to the hub in one commit, to an object store with what says that it is whole at the end.

Weight files may begin their way while others are still being made. What an interrupted run has brought there is known
again: by its digest on the hub, by a note of what was uploaded for a store.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from glob import escape
from pathlib import Path
from typing import Any, final

from ..cache import write_whole
from ..digests import digest_of_file
from ..errors import NothingThereError, OutputError, SculptError, Way, first_line
from ..file_kinds import CONFIG, MANIFEST, WEIGHT_SUFFIXES, is_private
from ..progress import NOTE
from . import hub, store
from .names import HubName, Url, hub_name, size_told, url_of
from .retry import retried, status_of
from .settings import Shown, home_of

logger = logging.getLogger(__name__)
REPLACED = Way(option="overwrite", effect="replaces it")
LAST = (CONFIG, MANIFEST)  # of a store: who finds these finds a whole model


def files_of(output: Path) -> dict[str, Path]:
    """Return what is uploaded of an output, by its name there: of a single file of weights itself and its manifest."""
    if output.is_file():
        return {file.name: file for file in (output, *sorted(output.parent.glob(f"{escape(output.stem)}.sculpt-*")))}
    return {
        file.relative_to(output).as_posix(): file
        for file in sorted(output.rglob("*"))
        if file.is_file() and not is_private(file.relative_to(output))
    }


def refuse_other(output: Path) -> None:
    """Refuse what is neither a model's folder nor a file of weights.

    Raises:
        OutputError: It is not.
    """
    if not output.is_dir() and not (output.is_file() and output.suffix == ".safetensors"):
        raise OutputError(
            f"`{output}` is no folder and no file of weights",
            hint="what is uploaded is an output of sculpt, or a model",
        )


class Upload(ABC):
    """An output on its way to another place.

    Attributes:
        told: The place, in words.
    """

    told: str

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._begun: dict[str, Future[str]] = {}

    @abstractmethod
    def check(self, *, overwrite: bool) -> None:
        """Refuse a place that may not be written, or where something else lies.

        Raises:
            SculptError: It may not.
        """

    @abstractmethod
    def _put(self, name: str, file: Path, digest: str | None = None) -> None:
        """Upload a file, whose digest may be known."""

    @abstractmethod
    def _finish(self, files: dict[str, Path], *, replaces: bool) -> str:
        """Make the whole visible under its name; return where that is.

        Args:
            replaces: Whether other weights that lie there go.
        """

    def begin(self, name: str, file: Path, later: Path) -> None:
        """Upload a file that is whole while others are still being made.

        Args:
            later: Where it lies once all are whole.
        """
        if name not in self._begun:
            self._begun[name] = self._pool.submit(self._put_and_digest, name, file, later)

    def finish(self, output: Path) -> str:
        """Upload what is left of an output, and make it visible; return where it is.

        Args:
            output: Its folder; or a file of weights, which goes with its manifest, and beside other weights.

        Raises:
            SculptError: It could not be uploaded; the same command goes on from what is there.
        """
        files = files_of(output)
        total = sum(file.stat().st_size for file in files.values())
        with self._telling(), Shown.bars(f"pushing to {self.told}") as report:
            done = 0
            for name, file in sorted(files.items(), key=lambda item: _rank(item[0])):
                report(done, total, name)
                if not self._is_begun(name, file):
                    self._put(name, file)
                done += file.stat().st_size
            report(total, total, "")
            return self._finish(files, replaces=output.is_dir())

    def close(self) -> None:
        """Give up what has not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _is_begun(self, name: str, file: Path) -> bool:
        """Return whether a file was uploaded before, with the bytes that it has now."""
        future = self._begun.pop(name, None)
        if future is None:
            return False
        try:
            return future.result() == digest_of_file(file)
        except Exception as error:
            logger.info("%s is uploaded again: %s", name, first_line(error))
            return False

    def _put_and_digest(self, name: str, file: Path, later: Path) -> str:
        try:
            digest = digest_of_file(file)
            self._put(name, file, digest)
        except Exception:  # libraries tell in ways of their own that a file has gone to where it lies later
            if file == later or file.exists():
                raise
            return self._put_and_digest(name, later, later)
        logger.info("%s is uploaded", name)
        return digest

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except SculptError:
            raise
        except Exception as error:  # of whichever library
            status = status_of(error)
            hint = "the same command goes on from what is there; `sculpt push` uploads an output that is made"
            if status in (401, 403) or isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                hint = "is the token one that may write? `HF_TOKEN` says who asks, on the hub"
            raise OutputError(f"cannot upload to `{self.told}`: {first_line(error)}", hint=hint) from error


def _rank(name: str) -> tuple[int, str]:
    """Return the place of a file among others: weights come first, what says that all is there comes last."""
    if name.endswith(WEIGHT_SUFFIXES):
        return 0, name
    if name.endswith(".index.json"):
        return 2, name
    return (3 + LAST.index(name), name) if name in LAST else (1, name)


def _stale(there: Iterable[str], files: Collection[str]) -> list[str]:
    """Return the names of weights that lie there, and of what lists them, which an output that replaces them lacks."""
    ends = (*WEIGHT_SUFFIXES, ".index.json")
    return [name for name in there if name not in files and "/" not in name and name.endswith(ends)]


@final
class HubUpload(Upload):
    """To the hub: files apart, then one commit, so that nobody sees the half of it."""

    def __init__(self, name: HubName, *, public: bool) -> None:
        super().__init__()
        self.told = str(name)
        self._name, self._public = name, public
        self._added: dict[str, Any] = {}
        self._there: list[str] = []
        self._is_made = False

    def check(self, *, overwrite: bool) -> None:
        """Refuse a repository that holds weights, unless it may be replaced."""
        from huggingface_hub import errors

        with hub.asking(self._name, self.told):
            try:
                self._there = list(hub.listed(HubName(repository=self._name.repository)).sizes)
                self._is_made = True
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                return
        held = next((name for name in self._there if name.endswith(WEIGHT_SUFFIXES)), None)
        if held is not None and not overwrite:
            raise OutputError(f"`{self.told}` is on the hub, and holds `{held}`", ways=[REPLACED])

    def _make(self) -> None:
        if not self._is_made:
            hub.api().create_repo(self._name.repository, private=not self._public, exist_ok=True)
            self._is_made = True

    def _put(self, name: str, file: Path, digest: str | None = None) -> None:
        del digest  # the hub's own is another
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # there is one of ours
        with hub.online():
            self._make()
            added = CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file))
            retried(lambda: hub.api().preupload_lfs_files(self._name.repository, [added], free_memory=False), name)
        self._added[name] = added

    def _finish(self, files: dict[str, Path], *, replaces: bool) -> str:
        from huggingface_hub import CommitOperationDelete

        stale = [CommitOperationDelete(path_in_repo=name) for name in _stale(self._there, files)] if replaces else []
        for name, file in files.items():  # a workspace's file has another path by now
            self._added[name].path_or_fileobj = str(file)
        operations = [*(self._added[name] for name in files), *stale]
        with hub.online():
            done = hub.api().create_commit(self._name.repository, operations, commit_message="Upload a model by sculpt")
        return str(done.commit_url)


@final
class StoreUpload(Upload):
    """To an object store: weights first, what names them last."""

    def __init__(self, url: Url) -> None:
        super().__init__()
        self.told = url.told.rstrip("/")
        self._url = url
        self._store = store.stores(url)
        self._root = store.path_in_store(url)
        self._note = home_of(self.told, "pushed").with_suffix(".json")
        self._known: dict[str, list[Any]] = {}
        self._there: dict[str, store.Stored] = {}

    def check(self, *, overwrite: bool) -> None:
        """Refuse a place where something lies that an interrupted upload did not leave, unless it may be replaced."""
        try:
            self._known = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        with self._telling(), suppress(NothingThereError):
            self._there = store.listed(self._url)
        foreign = next((name for name, own in self._there.items() if not self._is_known(name, own)), None)
        if foreign is not None and not overwrite:
            raise OutputError(f"`{self.told}` holds `{foreign}`", ways=[REPLACED])

    def _is_known(self, name: str, there: store.Stored) -> bool:
        known = self._known.get(name)
        return known is not None and known[:2] == [there.nbytes, there.etag]

    def _put(self, name: str, file: Path, digest: str | None = None) -> None:
        nbytes = file.stat().st_size  # before it may go to where it lies later
        digest, there = digest or digest_of_file(file), self._there.get(name)
        if there is not None and self._is_known(name, there) and self._known[name][2] == digest:
            return
        place = f"{self._root}/{name}"
        retried(lambda: self._store.put_file(str(file), place), name)
        self._store.invalidate_cache()
        found = store.stored_of(place, retried(lambda: self._store.info(place), name))
        if found.nbytes != nbytes:
            raise OutputError(f"`{place}` has {found.nbytes} bytes, and `{file}` {nbytes}")
        self._known[name] = [found.nbytes, found.etag, digest]
        write_whole(self._note, json.dumps(self._known).encode())

    def _finish(self, files: dict[str, Path], *, replaces: bool) -> str:
        for name in _stale(self._there, files) if replaces else ():
            self._store.rm_file(f"{self._root}/{name}")
        self._note.unlink(missing_ok=True)
        return self.told


UPLOAD: ContextVar[Upload | None] = ContextVar("UPLOAD", default=None)  # where the output that is being made goes


def upload_to(place: str, *, public: bool = False) -> Upload:
    """Return what uploads to a place: `org/name` on the hub, or a folder in an object store.

    Raises:
        OutputError: It is no such place.
    """
    url = url_of(place)
    if url is not None and url.scheme in ("s3", "gs", "az", "abfs", "abfss"):
        if public:
            raise OutputError("who may read an object store is said there, not by `public`", options=["public"])
        return StoreUpload(url)
    name = None if url is not None else hub_name(place)
    if name is None or "/" not in name.repository or name.revision or name.inside:
        raise OutputError(
            f"`{place}` is no place to push to",
            hint="`org/name` is one on the hub, `s3://bucket/name` one in a store (`gs://`, `az://`)",
        )
    return HubUpload(name, public=public)


def push(folder: Path | str, place: str, *, public: bool = False, overwrite: bool = False) -> str:
    """Upload a finished output, and return where it is.

    Args:
        folder: The output; or a file of weights, as kohya's scripts and ComfyUI keep it.
        place: `org/name` on the hub, private unless `public`; or a folder in an object store, `s3://bucket/name`.
        overwrite: Whether a model that lies there may be replaced.

    Raises:
        SculptError: It cannot be uploaded; the same call goes on from what is there.
    """
    folder = Path(folder)
    refuse_other(folder)
    upload = upload_to(str(place), public=public)
    try:
        upload.check(overwrite=overwrite)
        nbytes = sum(file.stat().st_size for file in files_of(folder).values())
        logger.log(NOTE, "%s: uploading %s to %s", folder, size_told(nbytes), upload.told)
        return upload.finish(folder)
    finally:
        upload.close()
