"""Models of the hub: found in its local cache, or fetched there, by huggingface_hub."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from ..errors import CheckpointError, SculptError, installs
from ..progress import NOTE, Progress
from .choose import WHOLE, indexed, needed, split
from .hub_errors import told
from .names import HubName, size_told
from .pointer import Pointer, make_shell
from .settings import Shown, home_of, is_offline, refuse_full_disk

logger = logging.getLogger(__name__)
COMMIT = re.compile("[0-9a-f]{40}")
TIMEOUT = 30.0  # seconds of silence
AT_ONCE = 4  # files that are fetched at the same time


@final
@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """What the hub holds of a model: the commit, and the size of each file by its name within the repository."""

    commit: str
    sizes: Mapping[str, int]


def is_installed() -> bool:
    """Return whether huggingface_hub is."""
    return find_spec("huggingface_hub") is not None


def cached(name: HubName) -> Path | None:
    """Return where the hub's cache holds a model, if all of its weights are there."""
    home = _home(name)
    if home is None:
        return None
    revision = name.revision or "main"
    reference = home / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    except (OSError, ValueError):
        return None
    folder = home / "snapshots" / commit
    found = folder if name.inside is None else folder / name.inside
    return found if COMMIT.fullmatch(commit) and _is_whole(found) else None


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder or file of the cache is of."""
    for path in (folder, *folder.parents):
        if path.parent.name == "snapshots":
            return path.name
    return None


def fetched(name: HubName, *, asked: str) -> Path:
    """Fetch what is needed of a model into the hub's cache, and return where it is there.

    Raises:
        CheckpointError: There is none, it may not be had, or the hub cannot be reached.
    """
    with asking(name, asked):
        from huggingface_hub import constants

        files = listed(name)
        read = partial(_content, name, files)
        chosen = chosen_files(name, files.sizes, read, asked=asked)
        missing = {file: files.sizes[file] for file in chosen if _in_cache(name, files.commit, file) is None}
        total = sum(missing.values())
        logger.log(NOTE, "%s: fetching %s in %d files from the hub", asked, size_told(total), len(missing))
        hint = "`HF_HOME` puts the cache elsewhere"
        refuse_full_disk(asked, "the hub's cache", Path(constants.HF_HUB_CACHE), total, hint=hint)
        with Shown.bars(f"fetching {asked}") as report:
            folder = _fetch(name, files.commit, missing or dict.fromkeys(chosen, 0), total, report)
    return folder if name.inside is None else folder / name.inside


def endpoint() -> str | None:
    """Return the hub that `HF_ENDPOINT` names; None is the one that everybody means."""
    return os.environ.get("HF_ENDPOINT") or None


def api() -> Any:
    """Return what asks the hub."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token())


def token() -> str | None:
    """Return who asks, as `HF_TOKEN` says; None leaves it to what `hf auth login` has kept."""
    return os.environ.get("HF_TOKEN") or None


def by_ranges(name: HubName, *, asked: str) -> tuple[Path, str]:
    """Return a folder in the local cache that stands for a model, whose weights are read by ranges; and the commit.

    What lies beside the weights is fetched, and so are weights that are no safetensors.

    Raises:
        CheckpointError: There is none, it may not be had, or the hub cannot be reached.
    """
    with asking(name, asked):
        files = listed(name)
        read = partial(_content, name, files)
        front = "" if name.inside is None else f"{name.inside}/"
        if name.inside in files.sizes:
            front, weights, beside = "", [str(name.inside)], []
        else:
            within = chosen_files(name, files.sizes, read, asked=asked)
            weights, beside = split([file.removeprefix(front) for file in within], lambda file: read(front + file))
        pointers = {
            file: Pointer(
                place=f"hf://{name.repository}@{files.commit}/{front}{file}",
                nbytes=files.sizes[front + file],
                etag=files.commit,
            )
            for file in weights
            if file.endswith(".safetensors")
        }
        others = {file: files.sizes[front + file] for file in [*weights, *beside] if file not in pointers}
        home = home_of(f"hf://{name.repository}:{name.inside}", f"{files.commit} by ranges")
        folder = home / name.repository.rpartition("/")[2]
        total = sum(pointer.nbytes for pointer in pointers.values())
        logger.log(NOTE, "%s: %s on the hub is read by ranges, with no copy here", asked, size_told(total))
        make_shell(folder, pointers, others, lambda file: read(front + file))
    return folder / str(name.inside) if name.inside in files.sizes else folder, files.commit


def read_range(name: HubName, file: str, commit: str, start: int, stop: int) -> bytes:
    """Return bytes `start … stop − 1` of a file of a commit; all of them from a server without ranges."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(name.repository, file, revision=commit, endpoint=endpoint())
    headers = {**build_hf_headers(token=token()), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    session: Any = get_session()
    response = session.get(url, headers=headers, follow_redirects=True, timeout=TIMEOUT)
    hf_raise_for_status(response)
    return response.content


def listed(name: HubName) -> HubFiles:
    """Return what the hub says of a model's files."""
    info = api().model_info(name.repository, revision=name.revision, files_metadata=True)
    assert info.sha is not None
    return HubFiles(commit=info.sha, sizes={file.rfilename: file.size or 0 for file in info.siblings or ()})


def chosen_files(name: HubName, sizes: Mapping[str, int], read: Any, *, asked: str) -> list[str]:
    """Return which of a repository's files are needed.

    Raises:
        CheckpointError: What is named inside of it is not there.
    """
    if name.inside in sizes:
        return [str(name.inside)]
    front = "" if name.inside is None else f"{name.inside}/"
    within = [file.removeprefix(front) for file in sizes if file.startswith(front)]
    if not within:
        folders = sorted({file.rpartition("/")[0] for file in sizes} - {""})
        raise CheckpointError(
            f"`{asked}` does not exist: `{name.repository}` is on the hub, and holds no `{name.inside or 'file'}`",
            hint=f"its folders: {', '.join(folders[:8])}" if folders else None,
        )
    return [front + file for file in needed(within, lambda file: read(front + file))]


@contextmanager
def asking(name: HubName, asked: str) -> Iterator[None]:
    """Ask the hub in a block, and tell what goes wrong in one sentence.

    Raises:
        CheckpointError: It went wrong, the user has forbidden it, or the library is missing.
    """
    if not is_installed():
        raise CheckpointError(
            f"`{asked}` does not exist",
            hint=f"if it is a name on the hub, {installs('hub')} installs what finds it there",
        )
    if is_offline():
        raise CheckpointError(
            f"`{asked}` does not exist here, and `HF_HUB_OFFLINE` forbids to look on the hub",
            hint=f"unset it, or fetch the model elsewhere: `hf download {name.repository}`",
        )
    try:
        with online():
            yield
    except SculptError:
        raise
    except Exception as error:  # of the library, of what it sends requests with, or of the file system
        raise told(error, name, asked) from error


class _Asking:
    """How many threads ask the hub, and what the library was told before the first did."""

    lock = threading.Lock()
    count = 0
    before = False


@contextmanager
def online() -> Iterator[None]:
    """Let the library ask the hub, which this process has forbidden it for what others would fetch on their own."""
    from huggingface_hub import constants

    with _Asking.lock:
        if not _Asking.count:
            _Asking.before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
        _Asking.count += 1
    try:
        yield
    finally:
        with _Asking.lock:
            _Asking.count -= 1
            if not _Asking.count:
                constants.HF_HUB_OFFLINE = _Asking.before


def download(name: HubName, file: str, revision: str, bar: Any = None) -> Path:
    """Return a file in the cache, fetched if it is not there."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(name.repository, file, revision=revision, tqdm_class=bar, endpoint=endpoint(), token=token())
    )


def _fetch(name: HubName, commit: str, missing: Mapping[str, int], total: int, report: Progress) -> Path:
    bar = _bar(report, total)
    first, *others = missing
    # Asked for by the name that was given, so that the cache knows it; the rest by the commit, which cannot move.
    path = download(name, first, name.revision or "main", bar)
    folder = path.parents[first.count("/")]
    if folder.name != commit:
        raise CheckpointError(
            f"`{name}` changed on the hub while it was fetched", hint="run the command again; what was fetched stays"
        )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(download, name, file, commit, bar) for file in others]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return folder


def _bar(report: Progress, total: int) -> Any:
    """Return a class of bars, one a file, that tell together how far the whole is."""
    from tqdm import tqdm

    done, lock = 0, threading.Lock()

    class Bar(tqdm):
        def __init__(self, *_: Any, desc: str = "", **__: Any) -> None:
            self.file = desc
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            with lock:
                done += int(n or 0)
                report(min(done, total), total, self.file)

    return Bar


def _content(name: HubName, files: HubFiles, file: str) -> bytes:
    return download(name, file, files.commit).read_bytes()


def _home(name: HubName) -> Path | None:
    if not is_installed():
        return None
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repository.replace('/', '--')}"


def _in_cache(name: HubName, commit: str, file: str) -> Path | None:
    home = _home(name)
    path = None if home is None else home / "snapshots" / commit / file
    return path if path is not None and path.exists() else None


def _is_whole(found: Path) -> bool:
    """Return whether what the cache holds can be read: others leave a configuration alone there, or some shards."""
    if not found.is_dir():
        return found.is_file()
    names = [file.relative_to(found).as_posix() for file in found.rglob("*") if file.is_file()]
    weights: Sequence[str] = [name for name in WHOLE if name in names]
    if weights and weights[0].endswith(".json"):
        try:
            return indexed(weights[0], (found / weights[0]).read_bytes()) <= set(names)
        except (OSError, CheckpointError):
            return True  # it is told where it is opened
    beside = (".json", ".txt", ".model", ".md", ".py", ".jinja")
    return bool(weights) or any(not name.endswith(beside) for name in names)
