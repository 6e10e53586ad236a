"""Which files are a GGUF model, by their names alone."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import CheckpointError

SUFFIX = ".gguf"
SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
NO_MODEL = ("mmproj", "imatrix")  # what lies beside a model under the same ending: a projector of images, statistics


def is_gguf(path: Path) -> bool:
    """Return whether a file is named as GGUF, or a folder holds such and no weights of another kind."""
    if not path.is_dir():
        return path.suffix == SUFFIX
    others = (*path.glob("*.safetensors"), *path.glob("*.bin"))
    return not others and bool(_models(path))


def gguf_files(path: Path) -> list[Path]:
    """Return the files of a GGUF model, which `path` is or holds.

    Raises:
        CheckpointError: A folder holds several models, or a part is missing.
    """
    if not path.is_dir():
        return _parts(path)
    models = _models(path)
    if len(models) > 1:
        names = [f"`{file.name}`" for file in models.values()]
        raise CheckpointError(
            f"`{path}` holds {len(models)} GGUF models ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})",
            hint="name the file that you mean",
        )
    return _parts(next(iter(models.values())))


def _models(folder: Path) -> dict[str, Path]:
    """Return the models in a folder, each by its first file."""
    found = [file for file in sorted(folder.glob(f"*{SUFFIX}")) if not file.name.lower().startswith(NO_MODEL)]
    models: dict[str, Path] = {}
    for file in found:
        match = SPLIT.fullmatch(file.name)
        models.setdefault(match["stem"] if match is not None else file.name, file)
    return models


def _parts(file: Path) -> list[Path]:
    match = SPLIT.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for name in names:
        if not file.with_name(name).is_file():
            raise CheckpointError(
                f"`{file}` is one of {count} parts, and `{name}` is missing", hint="is the download complete?"
            )
    return [file.with_name(name) for name in names]
