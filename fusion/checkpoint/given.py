"""Models in memory where a function of ours takes a path: they lie in a folder for as long as it runs."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..errors import CheckpointError
from ..file_kinds import kind_of
from ..ref import ModelRef, find_model
from .memory import MemorySource
from .output.layout import OutputTensor, make_layout
from .output.scratch import Scratch

Given = Any  # a path, a name on the hub, a model of transformers or PEFT, or tensors by name
P = ParamSpec("P")
R = TypeVar("R")
OF_TEXTS = ("tokenizer", "template", "processor")


def is_in_memory(model: Given) -> bool:
    """Return whether it is a model itself, and not the name of one.

    Raises:
        CheckpointError: It is neither.
    """
    if isinstance(model, (str, os.PathLike, ModelRef)):
        return False
    if isinstance(model, Mapping) or hasattr(model, "save_pretrained"):
        return True
    kind = type(model).__name__
    raise CheckpointError(f"a model is a path, a model of transformers or PEFT, or tensors by name; got {kind}")


def in_folder(model: Given, name: str, stack: ExitStack) -> Path | str:
    """Return where a model lies; one that is in memory is written into a folder that goes with the stack.

    A model that was loaded from somewhere has the tokenizer, template and processor that lie there.

    Raises:
        CheckpointError: It is no model, or a tensor has a dtype that no checkpoint stores.
    """
    if not is_in_memory(model):
        return str(model) if isinstance(model, (str, ModelRef)) else Path(model)
    origin = str(getattr(model, "name_or_path", "") or "")
    called = re.sub(r"[^\w.-]", "-", origin.rstrip("/").rpartition("/")[2]) or name
    folder = stack.enter_context(Scratch()).folder / called
    if isinstance(model, Mapping):
        folder.mkdir()
        _write(MemorySource(model, name=name), folder)
        return folder
    model.save_pretrained(folder)
    try:
        found = find_model(origin, fetch=False).path if origin else folder
    except CheckpointError:
        return folder
    for file in found.iterdir() if found.is_dir() else ():
        if file.is_file() and kind_of(Path(file.name)) in OF_TEXTS and not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


def _write(source: MemorySource, folder: Path) -> None:
    infos = source.tensors.values()
    tensors = [OutputTensor(name=info.name, dtype=info.dtype, shape=info.shape, origin=None) for info in infos]
    for shard in make_layout(tensors, source).shards:
        with (folder / shard.file_name).open("wb") as stream:
            stream.write(shard.header)
            for name, start in shard.offsets.items():
                stream.seek(start)
                stream.write(source.read(name).view("u1").data)


def takes_models(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of functions that take paths of models: these arguments may be models in memory.

    Args:
        names: Of the arguments; each a model, or several in a list.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            with ExitStack() as stack:
                for name in names:
                    value = bound.arguments.get(name)
                    if isinstance(value, (list, tuple)):
                        found = [in_folder(one, f"{name}-{k}", stack) for k, one in enumerate(value, 1)]
                        bound.arguments[name] = found
                    elif value is not None:
                        bound.arguments[name] = in_folder(value, name, stack)
                return function(*bound.args, **bound.kwargs)

        return run

    return decorate
