"""Which files of a model are needed, told by their names: one form of the weights, and what belongs to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from ..file_kinds import ADAPTER_CONFIG, PIPELINE, is_private, kind_of, why_left

# In the order in which transformers looks for them; what is first is read.
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
DIFFUSERS = tuple(re.sub("^(pytorch_)?model", "diffusion_pytorch_model", name) for name in WHOLE)
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
DISTRIBUTED = ".metadata"  # says what lies where in a distributed checkpoint of torch


def needed(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Return the files of a folder that a model is read from, without other forms of the same weights.

    Where nothing has a name that transformers looks for, it is all but what is private.

    Args:
        names: Within the folder, with `/` between folders.
        read: Returns the content of a file, for an index.

    Raises:
        CheckpointError: An index cannot be read.
    """
    weights, beside = split(names, read)
    return sorted([*weights, *beside])


def split(names: Iterable[str], read: Callable[[str], bytes]) -> tuple[list[str], list[str]]:
    """Return what `needed` does, the weights and what lies beside them; where neither can be told from the other, none.

    Raises:
        CheckpointError: An index cannot be read.
    """
    names = sorted(filter(_may_be_read, names))
    there = set(names)
    weights: set[str] = set()
    if PIPELINE in there:
        return _of_pipeline(names, read)
    first = next((name for name in (*WHOLE, *DIFFUSERS) if name in there), None)
    if first is not None:
        weights = {first} | (indexed(first, read(first)) & there if first.endswith(".json") else set())
        if first == "model.safetensors" and WHOLE[1] in there:
            weights.add(WHOLE[1])  # which of the two is stale is told where they are opened
    elif ADAPTER_CONFIG in there:
        weights = {name for name in ADAPTER[:1] if name in there} or {name for name in ADAPTER if name in there}
        weights.add(ADAPTER_CONFIG)
    else:
        own = {name for name in names if name.endswith(".safetensors") and "/" not in name}
        quantised = [name for name in names if name.endswith(".gguf")]
        if not own and len(quantised) > 1:
            raise CheckpointError(
                f"there are {len(quantised)} GGUF files, and each is a model",
                hint=f"name one of them, as in `PLACE:{quantised[0]}` on the hub, or by its URL",
            )
        if not own:
            return [], names
        weights = own
    return sorted(weights), [name for name in names if name not in weights and _belongs(name)]


def _may_be_read(name: str) -> bool:
    """Return whether a file is not private: `..` is, so that no name leads out of the folder that it is put in."""
    path = PurePosixPath(name)
    return not is_private(Path(*path.parts[:-1] if path.name == DISTRIBUTED else path.parts))


def _of_pipeline(names: Iterable[str], read: Callable[[str], bytes]) -> tuple[list[str], list[str]]:
    """Return what is needed of each model of a pipeline, and what lies beside them but weights."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, own = name.partition("/")
        folders.setdefault(folder if own else "", []).append(own or name)
    weights: list[str] = []
    beside = [name for name in folders.pop("", []) if _belongs(name) and not is_weights(name)]
    for folder, within in folders.items():
        if why_left(Path(folder), is_folder=True):
            continue
        found = split(within, lambda name, folder=folder: read(f"{folder}/{name}"))
        weights += [f"{folder}/{name}" for name in found[0]]
        beside += [f"{folder}/{name}" for name in found[1] if not is_weights(name) or not found[0]]
    return sorted(weights), sorted(beside)


def is_weights(name: str) -> bool:
    """Return whether a file holds tensors, by its name."""
    return kind_of(Path(PurePosixPath(name).name)) == "weights"


def _belongs(name: str) -> bool:
    """Return whether a file beside the weights may be part of the model; its own card is, for licence and languages."""
    path = Path(name)
    folders = [Path(*path.parts[:k]) for k in range(1, len(path.parts))]
    if any(why_left(folder, is_folder=True) for folder in folders):
        return False
    return name == "README.md" or why_left(path, is_folder=False) is None


def indexed(index: str, content: bytes) -> set[str]:
    """Return the names of the files that an index lists.

    Raises:
        CheckpointError: It lists none.
    """
    try:
        found = json.loads(content)
        shards: Mapping[str, str] = found["weight_map"]
        return {str(name) for name in shards.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`{index}` has no `weight_map`") from error
