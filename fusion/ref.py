"""What was asked for, where a model is named, and where it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from .errors import CheckpointError
from .places.names import Url, file_of, hub_name, url_of
from .places.settings import reads_by_ranges


@final
@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model as it was asked for: sentences, manifests and cards call it so.

    Attributes:
        asked: A folder, a file, `org/model@revision:inside` of the hub, or a URL, without passwords.
        path: Where it is; for a model of the hub a folder in the local cache, whose name says nothing.
        repository, revision: Of a model of the hub.
        url: Whether it lies in an object store or behind a web server.
        version: Which state of it that is: the commit, whatever its branch says by now, or the ETag; None of what is on
            the disk.
        base: What stands before a patch, as in `base+patch.safetensors`, whose path is the patch's; else None.
    """

    asked: str
    path: Path
    repository: str | None = None
    revision: str | None = None
    url: bool = False
    version: str | None = None
    base: ModelRef | None = None

    def __str__(self) -> str:
        return self.asked

    @property
    def name(self) -> str:
        """What a model card or statistics call it: the hub's name, or the folder's own."""
        own = self.repository or self.path.resolve().name
        return own if self.base is None else f"{self.base.name}+{own}"

    @property
    def parts(self) -> tuple[ModelRef, ...]:
        """What it is made of: the base, then the patches over it; of any other model itself."""
        return (self,) if self.base is None else (*self.base.parts, self)

    def beside(self, ending: str) -> Path:
        """Return where an output that is named after the model lies: beside it, or here if it is in the hub's cache."""
        if self.repository is not None:
            return Path(self.repository.rpartition("/")[2] + ending).absolute()
        if self.url:
            return Path((self.path.stem if self.path.is_file() else self.path.name) + ending).absolute()
        path = self.path.resolve()
        return path.with_name((path.stem if path.is_file() else path.name) + ending)


Asked = ModelRef | Path | str  # what names a model; a `ModelRef` has been found before


def find_model(asked: Asked, near: Path | None = None, *, fetch: bool = True) -> ModelRef:
    """Return where a model is: a path, or a model of the hub, fetched where the local cache lacks it.

    A path comes first. What follows a `+` is a patch over what stands before it.

    Args:
        near: A folder that the path may be relative to as well.
        fetch: Whether the network may be used: only for what a user named as a model.

    Raises:
        CheckpointError: It is nowhere.
    """
    if isinstance(asked, ModelRef):
        return asked
    if (url := url_of(str(asked))) is not None and not is_there(Path(asked)):
        return _of_url(url, fetch=fetch)
    for path in (Path(asked), *([near / asked] if near else [])):
        if is_there(path):
            return ModelRef(asked=str(path), path=path)
    patched = _patched(str(asked), near, fetch=fetch)
    return _of_hub(str(asked), fetch=fetch) if patched is None else patched


# What was looked for elsewhere, so that one run asks once and reads one state.
FOUND: dict[tuple[str, bool], ModelRef] = {}


def _of_url(url: Url, *, fetch: bool) -> ModelRef:
    """Return a model that lies in a store, copied into the local cache; or on this disk, where the URL says that.

    Raises:
        CheckpointError: It is not there, or cannot be had.
    """
    if url.scheme == "file":
        return find_model(file_of(url))
    from .places import store  # a model on the disk, as most are, needs neither this nor the hub

    key = (url.text, reads_by_ranges())
    if key not in FOUND:
        if not fetch:
            raise CheckpointError(f"`{url}` has not been looked for")
        path, version = store.by_ranges(url) if reads_by_ranges() else store.copied(url)
        FOUND[key] = ModelRef(asked=str(url), path=path, url=True, version=version)
    return FOUND[key]


def _of_hub(asked: str, *, fetch: bool) -> ModelRef:
    """Return a model of the hub.

    Raises:
        CheckpointError: The cache lacks it, and it is not to be fetched, or cannot be.
    """
    name = hub_name(asked)
    if name is None:
        raise CheckpointError(f"`{asked}` does not exist")
    from .places import hub

    path = hub.cached(name)
    is_known = (f"hf://{name}", reads_by_ranges()) in FOUND
    if path is None and not is_known and not (fetch and name.may_be_fetched):
        hint = f"`{name.repository}` is looked for in the hub's cache alone; a name there is `org/model`"
        raise CheckpointError(f"`{asked}` does not exist", hint=None if name.may_be_fetched else hint)
    if path is not None:
        return ModelRef(
            asked=str(name), path=path, repository=name.repository, revision=name.revision, version=hub.commit_of(path)
        )
    key = (f"hf://{name}", reads_by_ranges())
    if key not in FOUND:
        if reads_by_ranges():
            path, version = hub.by_ranges(name, asked=str(name))
        else:
            path = hub.fetched(name, asked=str(name))
            version = hub.commit_of(path)
        FOUND[key] = ModelRef(
            asked=str(name), path=path, repository=name.repository, revision=name.revision, version=version
        )
    return FOUND[key]


def with_patches(base: Asked, patches: Sequence[Asked]) -> ModelRef:
    """Return patches over a base, as `base+patch+patch` names them.

    Raises:
        CheckpointError: One of them is nowhere.
    """
    found = find_model(base)
    for patch in patches:
        own = find_model(patch)
        found = ModelRef(asked=f"{found}+{own}", path=own.path, base=found)
    return found


def _patched(asked: str, near: Path | None, *, fetch: bool = True) -> ModelRef | None:
    """Return a patch with what stands before it, if that is what was asked for."""
    for place in reversed([found.start() for found in re.finditer(r"\+", asked)]):
        before, patch = asked[:place].rstrip("/"), Path(asked[place + 1 :])
        for path in (patch, *([near / patch] if near else [])):
            if before and patch.name and is_there(path) and path.is_file():
                return ModelRef(asked=asked, path=path, base=find_model(before, near, fetch=fetch))
    return None


def refuse_patched(asked: Path) -> None:
    """Refuse a patch over its base where a folder is wanted.

    Raises:
        CheckpointError: It is one.
    """
    if not is_there(asked) and _patched(str(asked), None) is not None:
        raise CheckpointError(
            f"`{asked}` is a patch over its base, and no folder of files",
            hint="`sculpt apply` writes the folder; `sculpt patch verify` checks a patch and its base",
        )


def is_there(path: Path) -> bool:
    """Return whether a path exists; not for what is too long to be one, or none for another reason."""
    try:
        return path.exists()
    except (OSError, ValueError):  # such as a name that is too long to be one
        return False
