"""A checkpoint of DeepSpeed's ZeRO: the float32 weights, which lie in parts among the optimiser's states.

    latest                                          the name of the folder
    global_step9/mp_rank_00_model_states.pt         stage 1 and 2: shapes, buffers, and the weights in 16 bits
    global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt …   stage 3: shapes and buffers, one of each process
    global_step9/…zero_pp_rank_0_mp_rank_00_optim_states.pt …  each process's part of the float32 weights

DeepSpeed's `zero_to_fp32.py`, which it puts beside, says how the parts belong together. In stage 1 and 2 the parameters
of a group follow one another and the whole is cut into as many parts as there are processes; in stage 3 each parameter
is cut, so that a process has a slice of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, final

from ...errors import CheckpointError
from ...names import natural_key
from ...ref import ModelRef
from ..inert import Inert
from ..mapped_file import MappedFile
from ..torch_archive import StoredTensor, open_archive
from ..torch_file import EXTRA
from .pieced import InParts, Part, Pieced, look_above

MODEL, OPTIMISER = "*_model_states.pt", "*_optim_states.pt"
STEPS = "global_step*"
NOT_READ = re.compile(r"(?P<what>mp_rank_(?!00)\d+|expp?_rank_\d+|expert_\d+|layer_\d+-model)")


def is_zero(folder: Path) -> bool:
    """Return whether a folder holds the files of a ZeRO checkpoint, or folders of that kind."""
    return any(next(folder.glob(pattern), None) is not None for pattern in (MODEL, f"{STEPS}/{MODEL}"))


def _folder_of(ref: ModelRef) -> Path:
    """Return the folder of the step that is meant."""
    if next(ref.path.glob(MODEL), None) is not None:
        return ref.path
    steps = sorted({file.parent for file in ref.path.glob(f"{STEPS}/{MODEL}")})
    latest = ref.path / "latest"
    if latest.is_file():
        told = latest.read_text(encoding="utf-8", errors="replace").strip()
        found = next((step for step in steps if step.name == told), None)
        if found is None:
            raise CheckpointError(f"`{latest}` names `{told[:80]}`, which is not there", hint="name a step's folder")
        return found
    if len(steps) > 1:
        named = ", ".join(f"`{step.name}`" for step in steps[:5])
        raise CheckpointError(f"`{ref}` holds the steps {named}, and no `latest` says which", hint="name one of them")
    return steps[0]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A file of one process, and what it holds."""

    opened: MappedFile
    content: Mapping[str, Any]


@final
class ZeroCheckpoint(Pieced):
    """The weights of a ZeRO checkpoint, stage 1, 2 or 3, in float32 as the optimiser has them.

    Raises:
        CheckpointError: A process's file is missing or damaged, or the checkpoint is of a kind that is not read.
    """

    def __init__(self, ref: ModelRef) -> None:
        own = _folder_of(ref)
        for file in sorted(own.glob("*.pt")):
            if matched := NOT_READ.search(file.name):
                raise CheckpointError(
                    f"`{file}` is a part of a model that was split among processes (`{matched['what']}`), which is "
                    "not read",
                    hint="convert the checkpoint with the tools of the trainer that wrote it",
                )
        models = [_read(file) for file in _sorted(own, MODEL)]
        parts = [_read(file) for file in _sorted(own, OPTIMISER)]
        try:
            tensors, said = _tensors(own, models, parts)
        except CheckpointError:
            raise
        except Exception as error:  # content that is not what it should be fails in any way it likes
            raise CheckpointError(f"`{own}` is no ZeRO checkpoint that is understood: {error}") from error
        beside, above = look_above(ref, own)
        super().__init__(ref, beside, tensors, [read.opened for read in (*models, *parts)])
        self.said = (*said, *above)


def _sorted(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda file: natural_key(re.sub(r"(\d+)", r".\1.", file.name)))


def _read(file: Path) -> _Read:
    opened, content = open_archive(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"`{file}` holds no states of DeepSpeed's")
    return _Read(opened=opened, content=content)


def _tensors(folder: Path, models: Sequence[_Read], parts: Sequence[_Read]) -> tuple[dict[str, InParts], list[str]]:
    """Return the model's tensors, and what is said of them."""
    first = models[0].content
    module, shapes = first.get("module"), first.get("param_shapes")
    module = module if isinstance(module, Mapping) else {}
    if not parts:
        if shapes is not None and len(models) > 1:
            raise CheckpointError(
                f"`{folder}` has no `{OPTIMISER}`, which hold the weights", hint="copy the files of all processes"
            )
        whole = {name: _whole(models[0], tensor) for name, tensor in module.items() if not name.endswith(EXTRA)}
        return whole, [f"`{folder.name}` has no `{OPTIMISER}`: the weights are those of `module`"]
    if shapes is None:
        raise CheckpointError(f"`{models[0].opened.file}` does not say the shapes of the parameters (`param_shapes`)")
    states = [_optimiser(read) for read in parts]
    stage, count = _number(states[0]["zero_stage"]), states[0]["partition_count"]
    count = max(map(_number, count)) if isinstance(count, list) else _number(count)
    if count != len(parts):
        raise CheckpointError(
            f"`{folder}` holds {len(parts)} of the {count} files `{OPTIMISER}`",
            hint="every process writes one: copy all of them",
        )
    found = {name: _whole(models[0], module[name]) for name in first.get("buffer_names") or () if name in module}
    found |= _frozen(models, stage)
    if stage <= 2:
        groups = [state["single_partition_of_fp32_groups"] for state in states]
        found |= _cut_as_one(folder, shapes, groups, parts)
    else:
        groups = [state["fp32_flat_groups"] for state in states]
        found |= _cut_one_by_one(folder, shapes, groups, parts)
    for name, other in (first.get("shared_params") or {}).items():
        if other in found:
            found[name] = found[other]
    return found, [f"the weights of `{folder.name}` are the optimiser's, in float32, of {count} processes"]


def _optimiser(read: _Read) -> Mapping[str, Any]:
    state = read.content.get("optimizer_state_dict")
    if not isinstance(state, Mapping) or "zero_stage" not in state:
        raise CheckpointError(f"`{read.opened.file}` holds no state of a ZeRO optimiser")
    return state


def _number(value: Any) -> int:
    """Return a number; DeepSpeed's stages are members of an enumeration."""
    found: Any = value.args[0] if isinstance(value, Inert) and value.args else value
    return int(found)


def _whole(read: _Read, tensor: StoredTensor) -> InParts:
    """Return a tensor that lies in one file."""
    part = Part(offsets=(0,), sizes=(tensor.num_elements,), file=read.opened.file, held=lambda: tensor)
    return InParts(kind=tensor.kind, shape=tensor.shape, parts=(part,), flat=True)


def _frozen(models: Sequence[_Read], stage: int) -> dict[str, InParts]:
    """Return parameters that were not trained: whole up to stage 2, in stage 3 a slice of each in each process."""
    shapes = models[0].content.get("frozen_param_shapes") or {}
    held = [read.content.get("frozen_param_fragments") or {} for read in models]
    if stage <= 2:
        return {name: _whole(models[0], held[0][name]) for name in shapes}
    return {name: _slices(shape, [own[name] for own in held], models) for name, shape in shapes.items()}


def _slices(shape: Sequence[int], slices: Sequence[StoredTensor], files: Sequence[_Read]) -> InParts:
    """Return a tensor that lies in slices of one length, of which the last may end in padding."""
    count, begin, parts = prod(shape), 0, []
    for tensor, read in zip(slices, files, strict=True):
        size = min(tensor.num_elements, count - begin)
        if size > 0:
            held = lambda tensor=tensor: tensor  # noqa: E731
            parts.append(Part(offsets=(begin,), sizes=(size,), file=read.opened.file, held=held))
        begin += max(size, 0)
    return InParts(kind=slices[0].kind, shape=tuple(shape), parts=tuple(parts), flat=True)


def _cut_as_one(
    folder: Path,
    shapes: Sequence[Mapping[str, Sequence[int]]],
    groups: Sequence[Sequence[StoredTensor]],
    files: Sequence[_Read],
) -> dict[str, InParts]:
    """Return the parameters of groups that are each cut as one: stages 1 and 2."""
    found: dict[str, InParts] = {}
    aligned = 2 * len(files)
    for number, own in enumerate(shapes):
        line = [(held[number], read) for held, read in zip(groups, files, strict=True)]
        begin = 0
        for name, shape in own.items():
            count = prod(shape)
            parts = tuple(_along(line, begin, begin + count))
            found[name] = InParts(kind=line[0][0].kind, shape=tuple(shape), parts=parts, flat=True)
            begin += count
        _refuse_uneven(folder, ceil(begin / aligned), ceil(sum(t.num_elements for t, _ in line) / aligned))
    return found


def _along(line: Sequence[tuple[StoredTensor, _Read]], start: int, stop: int, offset: int = 0) -> Iterator[Part]:
    """Yield the parts of elements `start … stop − 1` of tensors that follow one another."""
    begin = 0
    for tensor, read in line:
        end = begin + tensor.num_elements
        first, last = max(start, begin), min(stop, end)
        if first < last:
            yield Part(
                offsets=(offset + first - start,),
                sizes=(last - first,),
                file=read.opened.file,
                held=lambda tensor=tensor: tensor,
                first=first - begin,
            )
        begin = end


def _cut_one_by_one(
    folder: Path,
    shapes: Sequence[Mapping[str, Sequence[int]]],
    groups: Sequence[Sequence[StoredTensor]],
    files: Sequence[_Read],
) -> dict[str, InParts]:
    """Return parameters that are each cut into a slice for each process: stage 3."""
    lines = [[(tensor, read) for tensor in held] for held, read in zip(groups, files, strict=True)]
    found: dict[str, InParts] = {}
    begin = 0
    for name, shape in ((name, shape) for own in shapes for name, shape in own.items()):
        count = prod(shape)
        slice_size = ceil(count / len(files))
        parts = tuple(
            part
            for rank, line in enumerate(lines)
            for part in _along(
                line, begin, begin + max(0, min(slice_size, count - rank * slice_size)), offset=rank * slice_size
            )
        )
        found[name] = InParts(kind=groups[0][0].kind, shape=tuple(shape), parts=parts, flat=True)
        begin += slice_size
    _refuse_uneven(folder, begin, sum(tensor.num_elements for tensor, _ in lines[0]))
    return found


def _refuse_uneven(folder: Path, needed: int, there: int) -> None:
    if needed != there:
        raise CheckpointError(
            f"`{folder}` does not hold its parameters: their shapes and the parts of them do not fit",
            hint="are all files of the same step?",
        )
