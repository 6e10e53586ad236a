"""What was asked for, where a model is named, and where it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

from .errors import CheckpointError

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?")


@final
@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model as it was asked for: sentences, manifests and cards call it so.

    Attributes:
        asked: A folder, a file, or `org/model@revision` of the hub.
        path: Where it is; for a model of the hub a folder in the local cache, whose name says nothing.
        repository, revision: Of a model of the hub.
        base: What stands before a patch, as in `base+patch.safetensors`, whose path is the patch's; else None.
    """

    asked: str
    path: Path
    repository: str | None = None
    revision: str | None = None
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
        path = self.path.resolve()
        return path.with_name((path.stem if path.is_file() else path.name) + ending)


Asked = ModelRef | Path | str  # what names a model; a `ModelRef` has been found before


def find_model(asked: Asked, near: Path | None = None) -> ModelRef:
    """Return where a model is: a path, or a model of the hub that the local cache holds. A path comes first.

    What follows a `+` is a patch over what stands before it.

    Args:
        near: A folder that the path may be relative to as well.

    Raises:
        CheckpointError: It is nowhere; nothing is fetched.
    """
    if isinstance(asked, ModelRef):
        return asked
    for path in (Path(asked), *([near / asked] if near else [])):
        if is_there(path):
            return ModelRef(asked=str(path), path=path)
    patched = _patched(str(asked), near)
    if patched is not None:
        return patched
    found = HUB_ID.fullmatch(str(asked))
    repository, revision = (found["repository"], found["revision"]) if found else (None, None)
    folder = _cached(repository, revision) if repository else None
    if folder is None:
        hint = _hub_hint() if found else None
        raise CheckpointError(f"`{asked}` does not exist", hint=hint)
    return ModelRef(asked=str(asked), path=folder, repository=repository, revision=revision)


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


def _patched(asked: str, near: Path | None) -> ModelRef | None:
    """Return a patch with what stands before it, if that is what was asked for."""
    for place in reversed([found.start() for found in re.finditer(r"\+", asked)]):
        before, patch = asked[:place].rstrip("/"), Path(asked[place + 1 :])
        for path in (patch, *([near / patch] if near else [])):
            if before and patch.name and is_there(path) and path.is_file():
                return ModelRef(asked=asked, path=path, base=find_model(before, near))
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


def _hub_hint() -> str:
    if find_spec("huggingface_hub") is None:
        return "what the hub's cache holds is found with `pip install 'checkpoint-sculpt[hub]'`"
    return "nothing is fetched from the hub: download the model first"


def _cached(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the hub's local cache, or None."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (ImportError, OSError, ValueError):
        return None
