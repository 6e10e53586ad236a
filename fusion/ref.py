"""What was asked for, where a model is named, and where it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    """

    asked: str
    path: Path
    repository: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.asked

    @property
    def name(self) -> str:
        """What a model card or statistics call it: the hub's name, or the folder's own."""
        return self.repository or self.path.resolve().name

    def beside(self, ending: str) -> Path:
        """Return where an output that is named after the model lies: beside it, or here if it is in the hub's cache."""
        if self.repository is not None:
            return Path(self.repository.rpartition("/")[2] + ending).absolute()
        path = self.path.resolve()
        return path.with_name((path.stem if path.is_file() else path.name) + ending)


Asked = ModelRef | Path | str  # what names a model; a `ModelRef` has been found before


def find_model(asked: Asked, near: Path | None = None) -> ModelRef:
    """Return where a model is: a path, or a model of the hub that the local cache holds. A path comes first.

    Args:
        near: A folder that the path may be relative to as well.

    Raises:
        CheckpointError: It is nowhere; nothing is fetched.
    """
    if isinstance(asked, ModelRef):
        return asked
    for path in (Path(asked), *([near / asked] if near else [])):
        if _exists(path):
            return ModelRef(asked=str(path), path=path)
    found = HUB_ID.fullmatch(str(asked))
    repository, revision = (found["repository"], found["revision"]) if found else (None, None)
    folder = _cached(repository, revision) if repository else None
    if folder is None:
        hint = "nothing is fetched from the hub: download the model first" if found else None
        raise CheckpointError(f"`{asked}` does not exist", hint=hint)
    return ModelRef(asked=str(asked), path=folder, repository=repository, revision=revision)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # such as a name that is too long to be one
        return False


def _cached(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the hub's local cache, or None."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (ImportError, OSError, ValueError):
        return None
