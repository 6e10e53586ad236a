"""A checkpoint on the disk: a folder of weight files with an index, or one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np

from ..errors import CheckpointError
from ..file_kinds import CONFIG
from ..ref import Asked, find_model
from .adapter.config import is_adapter
from .companions import Companion, look_beside
from .file_names import FileNames, find_files, names_of
from .foreign import GATHER, PATCH_FORMAT, refuse_foreign_folder
from .identity import FileIdentity, identities
from .json_file import read_json
from .remote_file import RemoteFile
from .source import Source, Stored
from .tensor_file import TensorFile, open_file
from .wrappers import unwrapped

SAFETENSORS_INDEX = "model.safetensors.index.json"
MAX_NAME = 200  # characters of a file's name; file systems end at 255 bytes


def _indexed_files(index: Path) -> tuple[dict[str, str], list[Path]]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"`{index}` has no `weight_map`")
    inside: set[str] = set()
    for name, file_name in weight_map.items():
        if isinstance(file_name, str) and file_name in inside:
            continue
        if not isinstance(file_name, str) or Path(file_name).name != file_name or len(file_name) > MAX_NAME:
            raise CheckpointError(f"`{index}` places `{name}` outside its folder, in `{file_name}`")
        inside.add(file_name)
    files = [index.parent / file_name for file_name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"`{index}` names `{file.name}`, which is missing", hint="is the download complete?")
    return weight_map, files


def _find_weights(folder: Path) -> Path:
    """Return the one file or index that a folder's weights are read from."""
    variants = find_files(folder)
    if "" not in variants and len(variants) > 1:
        raise CheckpointError(
            f"`{folder}` holds the variants {', '.join(f'`{name}`' for name in variants)} of its weights",
            hint="name the file of the one that you mean",
        )
    present = next(iter(variants.values()), [])
    if len(present) > 1 and names_of(present[0]) == names_of(present[1]) and _are_safetensors(present[:2]):
        raise CheckpointError(
            f"`{folder}` holds both `{present[0].name}` and `{present[1].name}`",
            hint="one of them is stale; name the file that you mean",
        )
    if present:
        return present[0]
    if is_adapter(folder):
        raise CheckpointError(f"`{folder}` is an adapter, not a whole checkpoint", hint="name its base model before it")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    if others:
        raise CheckpointError(
            f"`{folder}` holds {len(others)} safetensors files and no `{SAFETENSORS_INDEX}`",
            hint="is the download complete?",
        )
    refuse_foreign_folder(folder)
    raise CheckpointError(f"`{folder}` holds no `model.safetensors`, no shards and no `pytorch_model.bin`")


def left_out(names: Sequence[str], where: str) -> str:
    """Return what is said of what lies beside a model's weights in its files: a trainer's own."""
    shown = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{shown} of {where} {'is' if len(names) == 1 else 'are'} left out: not the model's weights"


def holds_weights(folder: Path) -> bool:
    """Return whether a folder holds a whole model under the names that transformers looks for."""
    return folder.is_dir() and bool(find_files(folder))


def _are_safetensors(files: Sequence[Path]) -> bool:
    return all(".safetensors" in file.name for file in files)


@final
class Checkpoint(Source):
    """A folder in the transformers layout, or a single weight file: safetensors, or what `torch.save` writes.

    Raises:
        CheckpointError: It cannot be read, or is an adapter.
    """

    def __init__(self, asked: Asked) -> None:
        self.ref = find_model(asked)
        found = _find_weights(self.path) if self.path.is_dir() else self.path
        self.folder = self.path if self.path.is_dir() else None
        self.index = found if found.suffix == ".json" else None
        beside = [self.index, self.folder / CONFIG if self.folder else None]
        self.file_names = {"": names_of(found) if self.folder is not None else FileNames()}
        self._identities = identities(file for file in beside if file is not None)
        weight_map, files = _indexed_files(self.index) if self.index else (None, [found])
        self._files = [open_file(file) for file in files]
        self.is_elsewhere = any(isinstance(opened, RemoteFile) for opened in self._files)
        self.files = tuple(files)
        if any(opened.metadata.get("format") == PATCH_FORMAT for opened in self._files):
            raise CheckpointError(
                f"`{self.ref}` is a patch, not a whole checkpoint",
                hint="name its base before it, as in `base/+patch.safetensors`",
            )
        places: dict[str, TensorFile] = {}
        for opened in self._files:
            file_name = opened.file.name
            for name in opened.tensors:
                if weight_map is not None and weight_map.get(name) != file_name:
                    raise CheckpointError(f"`{name}` lies in `{opened.file}`, but `{self.index}` does not say so")
                places[name] = opened
        for name, file_name in (weight_map or {}).items():
            if name not in places:
                raise CheckpointError(f"`{self.index}` names `{name}`, which is not in `{file_name}`")
        own = unwrapped(places)
        self.wrappers = own.wrappers
        self.said = tuple(left_out(opened.left, f"`{opened.file.name}`") for opened in self._files if opened.left)
        self._opened = {opened.file: opened for opened in self._files}
        self._inside = {own.names[name]: name for name in places if own.names[name] != name}
        self.tensors = {
            own.names[name]: opened.tensors[name]
            if own.names[name] == name
            else opened.tensors[name]._replace(name=own.names[name])
            for name, opened in places.items()
        }
        if not self._inside:
            for opened in self._files:  # one table of names, not two: there may be 100,000
                opened.tensors = self.tensors
        if self.tensors and not any(info.num_elements for info in self.tensors.values()):
            raise CheckpointError(
                f"all tensors of `{self.ref}` are empty: ZeRO-3 saves such tensors unless it gathers them",
                hint=GATHER,
            )

    def _file_of(self, name: str) -> TensorFile:
        file = self.tensors[name].file
        assert file is not None  # it was made of one
        return self._opened[file]

    def name_in_file(self, name: str) -> str:
        """Return what a tensor is called in its file: with what wrapped the model when it was saved."""
        return self._inside.get(name, name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1`; for safetensors a read-only view of the mapped file."""
        opened, inside = self._file_of(name), self.name_in_file(name)
        return opened.read(inside, start, stop)

    def foresee(self, spans: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Have ranges of a few elements fetched at the same time, where the files lie elsewhere."""
        for opened in self._files:
            if isinstance(opened, RemoteFile):
                own = {self.name_in_file(name): found for name, found in spans.items() if self._file_of(name) is opened}
                opened.foresee(own)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the mapped pages of elements that are not needed soon."""
        opened, inside = self._file_of(name), self.name_in_file(name)
        opened.release(inside, start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where elements lie in a mapped file."""
        opened, inside = self._file_of(name), self.name_in_file(name)
        extent = opened.extent(inside, start, stop)
        return (opened.file, *extent) if extent else None

    def identities(self) -> dict[Path, FileIdentity]:
        """Return weight files, index and configuration as they were when they were opened."""
        return self._identities | {opened.file: opened.identity for opened in self._files}

    def mapped(self) -> dict[Path, np.ndarray]:
        """Return the bytes of each file that is read through a memory map."""
        return {opened.file: content for opened in self._files if (content := opened.content()) is not None}

    @property
    def metadata(self) -> dict[str, str]:
        """What the files say of themselves; of several shards together."""
        return {key: value for opened in self._files for key, value in opened.metadata.items()}

    def beside(self) -> list[Companion]:
        """Return all that lies in the folder beside the weights."""
        return look_beside(self.folder, self.all_files) if self.folder else []
