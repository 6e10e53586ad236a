"""Which tensors of a checkpoint make which parameters of a model, told by transformers' own rules for loading.

`transformers.core_model_loading` applies renamings, then at most one converter a tensor; so do we, with its
functions. Conversions are tried out on the meta device first, which gives every shape on the way and refuses a
checkpoint that does not fit before a weight is read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..fusion.checkpoint import Source
from ..fusion.errors import ModelError
from .conversions import Step, Values, collapse, num_rows, pull_back
from .terms import Terms

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Recipe:
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
    steps: tuple[Step, ...] = ()

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
    """Recipes for all parameters that the checkpoint holds.

    Attributes:
        recipes: In the order of their first source in the checkpoint.
        missing: Parameters and buffers of the model that no tensor makes.
        unexpected: Tensors of the checkpoint that make nothing.
    """

    recipes: tuple[Recipe, ...]
    missing: frozenset[str]
    unexpected: frozenset[str]


def _stored_on_meta(checkpoint: Source, name: str) -> torch.Tensor:
    import torch

    info = checkpoint.tensors[name]
    return torch.empty(info.shape, dtype=getattr(torch, info.kind.torch), device="meta")


def map_names(model: Any, checkpoint: Source) -> NameMap:
    """Return how the checkpoint's tensors make the parameters of a model that is on the meta device, not yet tied.

    Raises:
        ModelError: A tensor does not fit the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = model.state_dict()
    plain: dict[str, str] = {}
    collected: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    unexpected: set[str] = set()
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if target not in state:
            unexpected.add(name)
        elif pattern is None:
            plain[target] = name
        else:
            converter, sources = collected.setdefault(target, (copy.deepcopy(by_pattern[pattern]), {}))
            sources.setdefault(pattern, []).append(name)
    recipes = [Recipe(sources={name: (name,)}, targets=(target,)) for target, name in plain.items()]
    for first, (converter, sources) in collected.items():
        recipes.append(_converted(model, checkpoint, converter, sources, first=first))
    made = {target for recipe in recipes for target in recipe.targets}
    for recipe in recipes:
        _check_shapes(model, checkpoint, recipe, state)
    return NameMap(recipes=tuple(recipes), missing=frozenset(set(state) - made), unexpected=frozenset(unexpected))


def _converted(
    model: Any, checkpoint: Source, converter: Any, sources: Mapping[str, list[str]], *, first: str
) -> Recipe:
    """Return the recipe of a converter, by running it on tensors without data."""
    values: dict[str, list[torch.Tensor]] = {
        pattern: [_stored_on_meta(checkpoint, name) for name in names] for pattern, names in sources.items()
    }
    steps = []
    try:
        for op in converter.operations:
            step = Step(
                op=op,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                before={key: [tuple(t.shape) for t in tensors] for key, tensors in values.items()},
                after={},
                kwargs={
                    "full_layer_name": first,
                    "model": model,
                    "config": model.config,
                    "missing_keys": None,
                },
            )
            values = step.run(values)
            after = {key: [tuple(t.shape) for t in tensors] for key, tensors in values.items()}
            steps.append(dataclasses.replace(step, after=after))
    except Exception as error:  # whatever the operation raises on tensors that do not fit
        names = next(iter(sources.values()))
        raise ModelError(f"transformers cannot make `{first}` from `{names[0]}`: {error}") from error
    full = first.replace("*.", "0.")
    prefix, suffix = next(
        ((head, tail) for head, found, tail in (full.partition(key) for key in values) if found), ("", "")
    )
    return Recipe(
        sources={pattern: tuple(names) for pattern, names in sources.items()},
        targets=tuple(prefix + key + suffix for key in values),
        keys=tuple(values),
        steps=tuple(steps),
    )


def _check_shapes(model: Any, checkpoint: Source, recipe: Recipe, state: Mapping[str, torch.Tensor]) -> None:
    shapes = (
        {key: made[0] for key, made in recipe.steps[-1].after.items()}
        if recipe.steps
        else {"": checkpoint.tensors[recipe.source_names[0]].shape}
    )
    for target, shape in zip(recipe.targets, shapes.values(), strict=True):
        expected = tuple(state[target].shape) if target in state else None
        if expected is not None and expected != tuple(shape):
            raise ModelError(
                f"`{recipe.source_names[0]}` gives {list(shape)}, but `{target}` of "
                f"`{type(model).__name__}` is {list(expected)}",
                hint="does `config.json` belong to these weights?",
            )


__all__ = ["NameMap", "Recipe", "map_names", "num_rows"]
