"""Which tensors belong together: for each output tensor, those that it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..checkpoint import Source, TensorInfo
from ..checkpoint.relaid import relaid
from ..names import OUTPUT_MODULES, Renaming, align, config_values, is_vocabulary, module_of, tied_source


class Match(NamedTuple):
    """The tensors that one output tensor is made of.

    Attributes:
        name: In the output.
        key: The name that selection and random numbers go by: the base's, or in slices the output's.
        parts: The tensor of each model that takes part, by the model's place in the plan (0 is the base); None where
            it has none. The first leads: what is said of the base holds for it.
        tied: Models whose part is another tensor of theirs, which they tie to this one.
    """

    name: str
    key: str
    parts: Mapping[int, TensorInfo | None]
    tied: frozenset[int] = frozenset()

    @property
    def names(self) -> list[str]:
        """What the tensor is called in each model that takes part."""
        return [self.name if info is None else info.name for info in self.parts.values()]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The matches of all output tensors, and the rules by which names were matched."""

    matches: tuple[Match, ...]
    renamings: tuple[Renaming, ...] = ()


def shapes_of(checkpoint: Source) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    return {name: info.shape for name, info in checkpoint.tensors.items()}


def make_match(name: str, key: str, owns: Mapping[int, str | None], models: Sequence[Source]) -> Match:
    """Return the match of one output tensor.

    Args:
        owns: What each model that takes part calls the tensor, the leading model first; None where it does not store
            it, so that a tensor to which it ties this one takes its place.
    """
    parts = {index: None if own is None else models[index].tensors.get(own) for index, own in owns.items()}
    if None not in parts.values():
        return Match(name=name, key=key, parts=parts)
    like = next(models[index].tensors[own] for index, own in owns.items() if own is not None)
    tied = set()
    for index, own in owns.items():
        if own is None and is_vocabulary(like.name):
            source = tied_source(like.name, shapes_of(models[index]), like.shape, models[index].config)
            tied |= {index} if source else set()
            parts[index] = None if source is None else models[index].tensors.get(source)
    return Match(name=name, key=key, parts=parts, tied=frozenset(tied))


def laid_alike(models: Sequence[Source], home: Source) -> list[Source]:
    """Return the models, each in the layout of one of them, as far as transformers' own rules lead there."""
    return [model if model is home else relaid(model, home) for model in models]


def whole_models(models: Sequence[Source], *, names_of_tuned: bool) -> Matching:
    """Return the matches of models that are fused whole: the base's tensors in their order, then those it lacks.

    Args:
        names_of_tuned: Whether the output's names are those of the first tuned model.
    """
    base, *tuned = models
    alignments = [align(shapes_of(base), shapes_of(model)) for model in tuned]
    matches = []
    for name in base.tensors:
        owns: dict[int, str | None] = {0: name}
        for index, alignment in enumerate(alignments, 1):
            owns[index] = alignment.pairs.get(name)
        output = owns.get(1) if names_of_tuned else None
        matches.append(make_match(output or name, name, owns, models))
    taken = {index: used_names(matches, index) for index in range(1, len(models))}
    extra = {name: None for index, used in taken.items() for name in models[index].tensors if name not in used}
    for name in extra:
        own = {k: name if name in models[k].tensors and name not in used else None for k, used in taken.items()}
        matches.append(make_match(name, name, {0: None, **own}, models))
    return Matching(
        matches=tuple(matches), renamings=tuple(rule for alignment in alignments for rule in alignment.renamings)
    )


def used_names(matches: Iterable[Match], index: int) -> set[str]:
    """Return the names of a model's tensors that are in one of the matches."""
    return {info.name for match in matches if (info := match.parts.get(index)) is not None}


def seen_as(info: TensorInfo, checkpoint: Source) -> str:
    """Return the name under which calibration of a model sees a tensor: of two that are tied, the embedding's."""
    if module_of(info.name) in OUTPUT_MODULES and True in config_values(checkpoint.config, "tie_word_embeddings"):
        return tied_source(info.name, shapes_of(checkpoint), info.shape, checkpoint.config) or info.name
    return info.name
