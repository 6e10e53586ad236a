"""A checkpoint in the layout of another one of the same model: renamed tensors, experts apart or stacked.

Both layouts make the same parameters, by transformers' own rules for loading, and in row-major order each tensor is a
run of a parameter's elements. So a tensor of one layout is runs of tensors of the other, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np

from ..errors import CheckpointError, ModelError
from ..names import align
from .adapter.module_names import ModelNames, ModelParameter
from .source import Source
from .tensor_info import TensorInfo
from .view import View


@dataclass(frozen=True, kw_only=True)
class Run:
    """Elements `start … stop − 1` of something larger, which a tensor holds."""

    tensor: str
    start: int
    stop: int


@final
class Relaid(View):
    """A model whose tensors have names and shapes of another checkpoint of it.

    Args:
        made: By new name, the form of the tensor and the runs of the model's own tensors that make it, in order.
    """

    def __init__(self, own: Source, made: Mapping[str, tuple[TensorInfo, tuple[Run, ...]]]) -> None:
        super().__init__(own)
        self.made = self._made = made
        used = {run.tensor: None for _, runs in made.values() for run in runs}
        self.used = frozenset(used)
        first = {name: runs[0].tensor for name, (_, runs) in made.items()}
        in_place: dict[str, list[str]] = {}
        for name, tensor in first.items():
            in_place.setdefault(tensor, []).append(name)
        self.tensors = tensors = dict[str, TensorInfo]()
        for name, info in own.tensors.items():
            tensors |= {name: info} if name not in used else {new: made[new][0] for new in in_place.get(name, ())}

    @property
    def changed(self) -> frozenset[str] | None:
        """Names, in the new layout, of what the model changes."""
        changed = self._own.changed
        if changed is None:
            return None
        made = {name for name, (_, runs) in self._made.items() if any(run.tensor in changed for run in runs)}
        return frozenset(made | (changed - self.used))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1`: a view where they lie in one tensor."""
        if name not in self._made:
            return self._own.read(name, start, stop)
        info, runs = self._made[name]
        last, begin, pieces = info.num_elements if stop is None else stop, 0, []
        for run in runs:
            end = begin + run.stop - run.start
            if begin < last and end > start:
                first = run.start + max(0, start - begin)
                pieces.append(self._own.read(run.tensor, first, run.start + min(last, end) - begin))
            begin = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, info.kind.numpy)])

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of what the whole tensor was read from; parts of it lie in other parts of other tensors."""
        if name not in self._made:
            self._own.release(name, start, stop)
        elif start == 0 and stop is None:
            for run in self._made[name][1]:
                self._own.release(run.tensor, run.start, run.stop)


def relaid(own: Source, like: Source) -> Source:
    """Return a model in the layout of another checkpoint of it, as far as the layouts differ; else the model itself.

    transformers builds the class of `like` for it, and only where both have tensors that the other lacks.
    """
    if own.tensors.keys() == like.tensors.keys():
        return own
    shapes = [{name: info.shape for name, info in model.tensors.items()} for model in (like, own)]
    pairs = align(*shapes).pairs
    wanted, left = shapes[0].keys() - pairs.keys(), shapes[1].keys() - set(pairs.values())
    if not wanted or not left:
        return own
    names = ModelNames(like)
    try:
        theirs, ours = names.made_of(like.tensors), names.made_of(own.tensors)
    except (CheckpointError, ModelError, ImportError):
        return own  # no class is known: the checkpoints' own names are all there is
    made: dict[str, tuple[TensorInfo, tuple[Run, ...]]] = {}
    for parameter in (name for name in theirs if name in ours):
        targets, pieces = (list(_runs(found[parameter], m)) for found, m in ((theirs, like), (ours, own)))
        kinds = {(own.tensors[run.tensor].dtype, own.tensors[run.tensor].stored) for run in pieces}
        if len(kinds) > 1 or {r.tensor for r in targets} - wanted or {r.tensor for r in pieces} - left:
            continue
        if not _tile(targets) or not _tile(pieces):
            continue
        plain = len(targets) == len(pieces) == 1
        if not plain and targets[-1].stop != pieces[-1].stop:
            continue
        for target in targets:
            # What is only renamed keeps its shape: that of a vocabulary may differ.
            shape = own.tensors[pieces[0].tensor].shape if plain else like.tensors[target.tensor].shape
            info = own.tensors[pieces[0].tensor]._replace(name=target.tensor, shape=shape)
            made[target.tensor] = info, tuple(pieces if plain else _within(target, pieces))
    return Relaid(own, made) if made else own


def _runs(parameter: ModelParameter, model: Source) -> Iterator[Run]:
    """Yield which elements of a parameter each tensor holds."""
    rows = parameter.shape[1] if len(parameter.shape) > 1 else 1
    for part in parameter.parts:
        if part.expert is None:
            start = part.first * prod(parameter.shape[1:])
        else:
            start = (part.expert * rows + part.first) * prod(parameter.shape[2:])
        yield Run(tensor=part.tensor, start=start, stop=start + model.tensors[part.tensor].num_elements)


def _tile(runs: list[Run]) -> bool:
    """Sort runs, and return whether they follow one another without a hole from the first element on."""
    runs.sort(key=lambda run: run.start)
    return all(run.start == before for run, before in zip(runs, [0, *(run.stop for run in runs)], strict=False))


def _within(target: Run, pieces: list[Run]) -> Iterator[Run]:
    """Yield the parts of the pieces that a target is made of, counted from the first element of each piece."""
    for piece in pieces:
        start, stop = max(target.start, piece.start), min(target.stop, piece.stop)
        if start < stop:
            yield Run(tensor=piece.tensor, start=start - piece.start, stop=stop - piece.start)
