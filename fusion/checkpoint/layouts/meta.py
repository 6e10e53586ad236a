"""Meta's own layout: `consolidated.00.pth` and on, each the part of one process of a model that was split among them.

columns of a matrix   wq, wk, wv, w1, w3, output: its outputs are split, axis 0
rows of a matrix      wo, w2: its inputs are split, axis 1
embeddings            axis 1 up to Llama 2, axis 0 (the vocabulary) from Llama 3 on, told by the width of the norms
norms, rope           whole in every part
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from ...errors import CheckpointError
from ...ref import ModelRef
from ..file_names import CONSOLIDATED, FileNames
from ..folder import left_out
from ..json_file import read_json
from ..torch_archive import StoredTensor, open_archive
from ..torch_file import state_dict
from .pieced import InParts, Part, Pieced

PART = re.compile(r"consolidated\.(?P<number>\d+)\.pth")
OUTPUTS = ("wq", "wk", "wv", "w1", "w3", "output")
INPUTS = ("wo", "w2")
WHOLE = re.compile(r"(.*norm\.(weight|bias)|rope\.freqs)")
EMBEDDINGS, NORM = "tok_embeddings.weight", "norm.weight"


def is_meta(folder: Path) -> bool:
    """Return whether a folder holds parts in Meta's layout."""
    return next(folder.glob("consolidated.*.pth"), None) is not None


@final
class MetaCheckpoint(Pieced):
    """A model in one part or several.

    Raises:
        CheckpointError: A part is missing or damaged, or a tensor is none that is known how to put together.
    """

    def __init__(self, ref: ModelRef) -> None:
        numbered = {int(m["number"]): file for file in ref.path.iterdir() if (m := PART.fullmatch(file.name))}
        files = [numbered[number] for number in sorted(numbered)]
        if sorted(numbered) != list(range(len(numbered))):
            missing = min(set(range(max(numbered, default=0))) - numbered.keys(), default=0)
            raise CheckpointError(
                f"`{ref}` has no `consolidated.{missing:02d}.pth`, and others like it",
                hint="is the download complete?",
            )
        archives = [open_archive(file) for file in files]
        read = [state_dict(file, content) for file, (_, content) in zip(files, archives, strict=True)]
        held, left = [tensors for tensors, _ in read], read[0][1]
        for file, own in zip(files, held, strict=True):
            if own.keys() != held[0].keys():
                odd = min(own.keys() ^ held[0].keys())
                raise CheckpointError(f"`{file}` and `{files[0].name}` are of two models: `{odd}` is in one alone")
        width = held[0][NORM].num_elements if NORM in held[0] else None
        tensors = {name: _joined(name, [own[name] for own in held], files, width) for name in held[0]}
        _refuse_partial(ref, tensors, width, len(files))
        super().__init__(ref, ref.path, tensors, [opened for opened, _ in archives])
        self.file_names = {"": FileNames(stem=CONSOLIDATED)}
        self.said = (left_out(left, f"`{files[0].name}`"),) if left else ()


def _refuse_partial(ref: ModelRef, tensors: Mapping[str, InParts], width: int | None, count: int) -> None:
    """Refuse parts of which the last ones are missing: embeddings, or what attention ends in, are too narrow."""
    params = ref.path / "params.json"
    said = read_json(params) if params.is_file() else {}
    has_own_width = isinstance(said, dict) and said.get("head_dim") is not None
    for name, pieces in tensors.items():
        narrow = name == EMBEDDINGS or (name.endswith(".attention.wo.weight") and not has_own_width)
        if narrow and width is not None and len(pieces.shape) == 2 and pieces.shape[1] != width:
            raise CheckpointError(
                f"`{ref}` holds {count} of its parts and lacks others: `{name}` is {list(pieces.shape)}, of a model of "
                f"width {width}",
                hint="is the download complete?",
            )


def _joined(name: str, held: Sequence[StoredTensor], files: Sequence[Path], width: int | None) -> InParts:
    """Return a tensor of which each part has a piece, or all of it."""
    first = held[0]
    axis = _axis(name, first, width) if len(held) > 1 else None
    if axis is None:
        if len(held) > 1 and not WHOLE.fullmatch(name):
            raise CheckpointError(
                f"`{name}` in `{files[0].parent}` is split among {len(held)} files, and how is not known",
                hint="a checkpoint that the model's own tools have converted is read",
            )
        held, axis = held[:1], 0
    others = [tensor.shape[:axis] + tensor.shape[axis + 1 :] for tensor in held]
    if any(other != others[0] or len(tensor.shape) <= axis for other, tensor in zip(others, held, strict=True)):
        told = " and ".join(str(list(tensor.shape)) for tensor in held[:2])
        raise CheckpointError(f"the parts of `{name}` in `{files[0].parent}` do not fit: {told}")
    parts, begin = [], 0
    for tensor, file in zip(held, files, strict=False):
        offsets = tuple(begin if k == axis else 0 for k in range(len(tensor.shape)))
        parts.append(Part(offsets=offsets, sizes=tensor.shape, file=file, held=lambda tensor=tensor: tensor))
        begin += tensor.shape[axis] if tensor.shape else 0
    shape = tuple(begin if k == axis else size for k, size in enumerate(first.shape))
    return InParts(kind=first.kind, shape=shape, parts=tuple(parts))


def _axis(name: str, tensor: StoredTensor, width: int | None) -> int | None:
    """Return along which axis a tensor is split; None where it is whole, or where that is not known."""
    module, _, leaf = name.rpartition(".")
    module = module.rpartition(".")[2]
    if name == EMBEDDINGS and len(tensor.shape) == 2:
        return None if width is None else int(tensor.shape[1] != width)
    if module in OUTPUTS:
        return 0
    return 1 if module in INPUTS and leaf == "weight" else None
