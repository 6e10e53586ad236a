"""A checkpoint as names, shapes and places; its weights are read when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import xxhash

from ..errors import CheckpointError
from .bytes_of import as_bytes
from .safetensors_file import SafetensorsFile
from .tensor_info import TensorInfo
from .torch_file import TorchFile

if TYPE_CHECKING:
    from .adapter.file import AdapterFile

__all__ = ["Checkpoint", "TensorInfo"]

SAFETENSORS_INDEX = "model.safetensors.index.json"
# In the order in which transformers looks for them.
LAYOUTS = ("model.safetensors", SAFETENSORS_INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
SAMPLE_BYTES = 4096


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: The file is unreadable or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read `{file}`: {error}") from error


def _open_file(file: Path) -> SafetensorsFile | TorchFile:
    return SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)


def _indexed_files(index: Path) -> tuple[dict[str, str], list[Path]]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"`{index}` has no `weight_map`")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"`{index}` places `{name}` outside its folder, in `{file_name}`")
    files = [index.parent / file_name for file_name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"`{index}` names `{file.name}`, which is missing", hint="is the download whole?")
    return weight_map, files


def _find_weights(folder: Path) -> Path:
    """Return the one file or index that a folder's weights are read from."""
    present = [folder / name for name in LAYOUTS if (folder / name).is_file()]
    safetensors = [file for file in present if "safetensors" in file.name]
    if len(safetensors) == 2:
        raise CheckpointError(
            f"`{folder}` holds both `model.safetensors` and `{SAFETENSORS_INDEX}`",
            hint="one of them is stale; name the file that you mean",
        )
    if present:
        return present[0]
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"`{folder}` is an adapter, not a whole checkpoint", hint="name its base model before it")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    if others:
        raise CheckpointError(
            f"`{folder}` holds {len(others)} safetensors files and no `{SAFETENSORS_INDEX}`",
            hint="is the download whole?",
        )
    raise CheckpointError(f"`{folder}` holds no `model.safetensors`, no shards and no `pytorch_model.bin`")


@final
class Checkpoint:
    """A folder in the transformers layout, a single weight file, or a PEFT adapter over its base.

    Attributes:
        path: What was opened.
        folder: The folder of configuration and tokenizer files, or None for a single file given by name. An adapter's
            is its base's.
        files: Every weight file, sorted by name; of an adapter its own files only.
        index: The index file, or None.
        tensors: Name to `TensorInfo`, in file order. Those that an adapter leaves alone are its base's very objects.
        adapter: What an adapter changes, or None.
    """

    def __init__(self, path: Path | str, base: Checkpoint | None = None) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise CheckpointError(f"`{path}` does not exist")
        self.adapter: AdapterFile | None = None
        if base is not None and (self.path / "adapter_config.json").is_file():
            self._open_adapter(base)
            return
        source = _find_weights(self.path) if self.path.is_dir() else self.path
        self.folder = self.path if self.path.is_dir() else None
        self.index = source if source.suffix == ".json" else None
        if self.index:
            weight_map, files = _indexed_files(self.index)
        else:
            weight_map, files = None, [source]
        self._files = {file: _open_file(file) for file in files}
        self.files = tuple(files)
        tensors: dict[str, TensorInfo] = {}
        for file, opened in self._files.items():
            for name, info in opened.tensors.items():
                if weight_map is not None and weight_map.get(name) != file.name:
                    raise CheckpointError(f"`{name}` lies in `{file}`, but `{self.index}` does not say so")
                tensors[name] = info
        for name in weight_map or ():
            if name not in tensors:
                raise CheckpointError(f"`{self.index}` names `{name}`, which is not in `{weight_map[name]}`")  # pyright: ignore[reportOptionalSubscript]
        self.tensors: Mapping[str, TensorInfo] = tensors

    def _open_adapter(self, base: Checkpoint) -> None:
        from .adapter.file import AdapterFile

        self.adapter = adapter = AdapterFile(self.path, base)
        self.folder, self.index, self._base = base.folder, None, base
        self.files = (self.path / "adapter_config.json", adapter.file)
        self._files = {**base._files, adapter.file: adapter}
        self.tensors = {name: adapter.tensors.get(name, info) for name, info in base.tensors.items()} | {
            name: info for name, info in adapter.tensors.items() if name not in base.tensors
        }

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.tensors)} tensors)"

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's `config.json`, or None where there is none."""
        file = self.folder / "config.json" if self.folder else None
        if file is None or not file.is_file():
            return None
        content = read_json(file)
        if not isinstance(content, dict):
            raise CheckpointError(f"`{file}` is not a JSON object")
        return content

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start:stop` of the flattened tensor in its stored dtype.

        bfloat16 comes as `ml_dtypes.bfloat16`. For safetensors it is a read-only view of the mapped file.
        """
        info = self.tensors[name]
        return self._files[info.file].raw(info, start, info.num_elements if stop is None else stop)

    def mapped(self) -> dict[Path, np.ndarray]:
        """Return the bytes of each file that is read through a memory map."""
        return {path: file.content() for path, file in self._files.items() if isinstance(file, SafetensorsFile)}

    def release(self, name: str) -> None:
        """Let go of the mapped pages of a tensor that is not needed soon."""
        info = self.tensors[name]
        self._files[info.file].release(info)

    def release_part(self, name: str, start: int, stop: int) -> None:
        """Let go of the pages of elements `start:stop`, where they are mapped from a file."""
        info = self.tensors[name]
        file = self._files[info.file]
        if isinstance(file, SafetensorsFile):
            file.release(info, start, stop)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, dtypes, shapes and three samples of each tensor's bytes.

        An adapter's is a digest of its base's and of all that its files hold.
        It tells fine-tunes of one model apart in milliseconds, without reading the weights: the first, middle and
        last 4 KiB of every tensor. Names are sorted, so the split into shards does not matter. It is no proof
        against a forger; the manifest's file digests are.
        """
        digest = xxhash.xxh3_128()
        if self.adapter is not None:
            digest.update(f"{self._base.fingerprint} {self.adapter.digest()}".encode())
            return f"xxh3-128:{digest.hexdigest()}"
        with ExitStack() as stack:  # read, not mapped: a page fault maps a lot more than a sample
            streams = {path: stack.enter_context(path.open("rb", buffering=0)) for path in self.mapped()}
            for name, info in sorted(self.tensors.items()):
                digest.update(json.dumps([name, info.dtype, info.shape]).encode())
                if info.stored.numpy is None:
                    continue
                for start, stop in _samples(info):
                    stream = streams.get(info.file)
                    if stream is None:
                        digest.update(as_bytes(self.raw(name, start, stop)))
                    else:
                        stream.seek(info.offset + start * info.stored.numpy.itemsize)
                        digest.update(stream.read((stop - start) * info.stored.numpy.itemsize))
        return f"xxh3-128:{digest.hexdigest()}"


def _samples(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Yield first elements and those after the last, of all of a small tensor, of three pieces of a large one."""
    if info.nbytes <= 3 * SAMPLE_BYTES:
        yield 0, info.num_elements
        return
    length = max(1, SAMPLE_BYTES * info.num_elements // info.nbytes)
    last = max(0, info.num_elements - length)
    for start in sorted({0, last // 2, last}):
        yield start, min(start + length, info.num_elements)


def open_checkpoint(path: Path | str, base: Checkpoint | Path | str | None = None) -> Checkpoint:
    """Return a checkpoint, or an adapter over its base.

    Args:
        base: What an adapter was trained on, and itself no adapter of a base that is not given; None is the folder
            that `adapter_config.json` names, where there is such. A whole checkpoint has no use for it.

    Raises:
        CheckpointError: It cannot be read, or an adapter's base is nowhere.
    """
    from .adapter.config import ADAPTER_CONFIG, AdapterConfig, is_adapter

    folder = Path(path)
    if not is_adapter(folder) or any((folder / name).is_file() for name in LAYOUTS):
        return Checkpoint(folder)
    if base is None:
        named = AdapterConfig.read(folder).base_model
        if named is None or not Path(named).is_dir():
            raise CheckpointError(
                f"`{folder}` is an adapter, and its base is not at hand",
                hint=f"`{ADAPTER_CONFIG}` says `{named}`; name a folder for the base",
            )
        base = named
    return Checkpoint(folder, base if isinstance(base, Checkpoint) else Checkpoint(base))
