"""How the tensors of a checkpoint make the parameters of a model, and how statistics of parameters are moved back.

Conversions are tried out on the meta device first, which gives every shape on the way and refuses a checkpoint that
does not fit before a weight is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..fusion.checkpoint import TensorInfo
from ..fusion.checkpoint.loading_rules import Converted, LoadingRules
from ..fusion.errors import ModelError
from .conversions import Conversion, Values, collapse, pull_back
from .terms import Terms

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """How parameters are made: one tensor renamed, or several through a converter's steps.

    Attributes:
        sources: Pattern to the names of checkpoint tensors, in the order in which they are given.
        targets: Names of the parameters that come out.
        keys: For each target its key among the last step's outputs.
        steps: None of them for a tensor that is only renamed.
    """

    sources: Mapping[str, tuple[str, ...]]
    targets: tuple[str, ...]
    keys: tuple[str, ...] = ()
    steps: tuple[Conversion, ...] = ()

    @property
    def source_names(self) -> list[str]:
        """Names of all tensors that are read."""
        return [name for names in self.sources.values() for name in names]

    def make(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parameters, from the tensors by name; these are let go of on the way."""
        if not self.steps:
            return {self.targets[0]: tensors.pop(self.source_names[0])}
        values: dict[str, Any] = {key: [tensors.pop(name) for name in names] for key, names in self.sources.items()}
        for step in self.steps:
            values = step.run(values)
        return {target: values[key][0] for target, key in zip(self.targets, self.keys, strict=True)}

    def pull_back(self, terms: Mapping[str, Terms]) -> dict[str, Terms]:
        """Return the statistics of the checkpoint's tensors from those of the parameters, by name."""
        if not self.steps:
            return {self.source_names[0]: terms[self.targets[0]]} if self.targets[0] in terms else {}
        sums = self._move({target: found.sums for target, found in terms.items()})
        counts = self._move({target: found.counts for target, found in terms.items()})
        grams = self._grams(terms)
        found = {}
        for name in self.source_names:
            if sums.get(name):
                found[name] = Terms(
                    sums=tuple(map(collapse, sums[name])), counts=counts.get(name, ()), gram=grams.get(name)
                )
        return found

    def _move(self, arrays: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        values: Values = {key: [arrays.get(t, ())] for t, key in zip(self.targets, self.keys, strict=True)}
        moved = pull_back(self.steps, values)
        return {
            name: moved[pattern][k]
            for pattern, names in self.sources.items()
            if pattern in moved
            for k, name in enumerate(names)
        }

    def _grams(self, terms: Mapping[str, Terms]) -> dict[str, Any]:
        """Return Σx·xᵀ of the sources, where each sees the inputs of the one target, whole or an expert of it."""
        known = [(target, terms[target].gram) for target in self.targets if target in terms]
        grams = [gram for _, gram in known if gram is not None]
        if not grams or any((gram != grams[0]).any() for gram in grams[1:] if gram.shape == grams[0].shape):
            return {}
        gram = grams[0]
        found = {}
        for names in self.sources.values():
            for k, name in enumerate(names):
                if gram.ndim == 3 and len(names) == gram.shape[0]:
                    found[name] = gram[k]
                elif gram.ndim == 2 or len(names) == 1:
                    found[name] = gram
        return found


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """Assemblies for all parameters that the checkpoint holds.

    Attributes:
        assemblies: In the order of their first source in the checkpoint.
        missing: Parameters and buffers of the model that no tensor makes.
        unexpected: Tensors of the checkpoint that make nothing.
    """

    assemblies: tuple[Assembly, ...]
    missing: frozenset[str]
    unexpected: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A tensor that gives a parameter another shape than the model's."""

    tensor: str
    parameter: str
    shape: tuple[int, ...]
    expected: tuple[int, ...]


def _on_meta(info: TensorInfo) -> torch.Tensor:
    import torch

    return torch.empty(info.shape, dtype=getattr(torch, info.kind.torch), device="meta")


def map_names(model: Any, tensors: Mapping[str, TensorInfo]) -> NameMap:
    """Return how a checkpoint's tensors make the parameters of a model that is on the meta device, not yet tied.

    Raises:
        ModelError: A tensor does not fit the model.
    """
    names = assemble(model, tensors)
    for misfit in misfits(model, tensors, names):
        raise ModelError(
            f"`{misfit.tensor}` gives {list(misfit.shape)}, but `{misfit.parameter}` of "
            f"`{type(model).__name__}` is {list(misfit.expected)}",
            hint="does `config.json` belong to these weights?",
        )
    return names


def assemble(model: Any, tensors: Mapping[str, TensorInfo]) -> NameMap:
    """Return how a checkpoint's tensors make the parameters of a model, whatever shapes come out.

    Raises:
        ModelError: An operation of transformers fails on them.
    """
    rules = LoadingRules(model)
    names = rules.sort(tensors)
    assemblies = [Assembly(sources={name: (name,)}, targets=(target,)) for target, name in names.plain.items()]
    assemblies += [_converted(model, tensors, converted) for converted in names.converted]
    made = {target for assembly in assemblies for target in assembly.targets}
    return NameMap(
        assemblies=tuple(assemblies), missing=frozenset(set(rules.state) - made), unexpected=names.unexpected
    )


def misfits(model: Any, tensors: Mapping[str, TensorInfo], names: NameMap) -> Iterator[Misfit]:
    """Yield what has another shape in the model than its tensors give."""
    state = model.state_dict()
    for assembly in names.assemblies:
        shapes = (
            [made[0] for made in assembly.steps[-1].after.values()]
            if assembly.steps
            else [tensors[assembly.source_names[0]].shape]
        )
        for target, shape in zip(assembly.targets, shapes, strict=True):
            expected = tuple(state[target].shape) if target in state else tuple(shape)
            if expected != tuple(shape):
                yield Misfit(tensor=assembly.source_names[0], parameter=target, shape=tuple(shape), expected=expected)


def _converted(model: Any, tensors: Mapping[str, TensorInfo], converted: Converted) -> Assembly:
    """Return the assembly of a converter, by running it on tensors without data."""
    converter, first, sources = converted.converter, converted.first, converted.sources
    values: dict[str, list[torch.Tensor]] = {
        pattern: [_on_meta(tensors[name]) for name in names] for pattern, names in sources.items()
    }
    steps = []
    try:
        for op in converter.operations:
            step = Conversion(
                op=op,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                before={key: [tuple(t.shape) for t in found] for key, found in values.items()},
                after={},
                kwargs={
                    "full_layer_name": first,
                    "model": model,
                    "config": model.config,
                    "missing_keys": None,
                },
            )
            values = step.run(values)
            after = {key: [tuple(t.shape) for t in found] for key, found in values.items()}
            steps.append(dataclasses.replace(step, after=after))
    except Exception as error:  # whatever the operation raises on tensors that do not fit
        names = next(iter(sources.values()))
        raise ModelError(f"transformers cannot make `{first}` from `{names[0]}`: {error}") from error
    full = first.replace("*.", "0.")
    prefix, suffix = next(
        ((head, tail) for head, found, tail in (full.partition(key) for key in values) if found), ("", "")
    )
    return Assembly(
        sources=sources,
        targets=tuple(prefix + key + suffix for key in values),
        keys=tuple(values),
        steps=tuple(steps),
    )
