"""Where the parameters of a transformers model lie in a checkpoint whose names are not the model's own.

An adapter names the model's modules. Mostly the checkpoint's names are the same. Where they are not (LLaVA's
prefixes, fused experts), transformers' rules for loading tell, applied to the model on the meta device: no weight is
loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from ...errors import CheckpointError

if TYPE_CHECKING:
    from ..source import Source


@dataclass(frozen=True, kw_only=True)
class Place:
    """A checkpoint tensor that is a parameter, or a part of one.

    Attributes:
        expert: Which slice of the parameter's first dimension it is, or None for all of it.
        first: At which of the parameter's rows it begins.
    """

    tensor: str
    expert: int | None = None
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of the model: its shape, and the tensors that it is made of."""

    shape: tuple[int, ...]
    places: tuple[Place, ...]


@final
class ModelNames:
    """The parameters of the model that a checkpoint's `config.json` names; built when it is first asked.

    Raises:
        CheckpointError: transformers cannot build the model.
    """

    def __init__(self, checkpoint: Source) -> None:
        self._checkpoint = checkpoint

    @cached_property
    def _model(self) -> Any:
        folder = self._checkpoint.folder
        config = self._checkpoint.config
        if folder is None or config is None:
            raise CheckpointError(f"`{self._checkpoint.ref}` has no `config.json` that names its model")
        try:
            import torch
            import transformers

            loaded = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            name = (config.get("architectures") or [""])[0]
            cls = getattr(transformers, name, None)
            if not isinstance(cls, type):
                raise ValueError(f"transformers has no class `{name}`")
            with torch.device("meta"):
                return cls(loaded)
        except Exception as error:  # transformers raises anything on what it does not know
            raise CheckpointError(f"transformers cannot build the model of `{folder}`: {error}") from error

    def is_transposed(self, module: str) -> bool | None:
        """Return whether a module stores its weights (d_in, d_out); None for a module that is not there."""
        try:
            found = self._model.get_submodule(module)
        except AttributeError:
            return None
        return type(found).__name__ == "Conv1D" or bool(getattr(found, "is_transposed", False))

    def kinds_of(self, module: str) -> frozenset[str]:
        """Return the names of a module's class and of those that it inherits from."""
        return frozenset(cls.__name__ for cls in type(self._model.get_submodule(module)).__mro__)

    def groups_of(self, module: str) -> int:
        """Return the groups of a convolution."""
        return self._model.get_submodule(module).groups

    def find(self, name: str) -> Parameter | None:
        """Return a parameter by its name in the model, or by one that transformers renames on loading."""
        known = self.parameters
        return known.get(name) or known.get(self._rename(name)[0])

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameter name to the tensors that make it; those that no tensor makes are left out."""
        from transformers.core_model_loading import dot_natural_key

        tensors, state = self._checkpoint.tensors, self._state
        by_pattern = {pattern: entry for entry in self._rules[1] for pattern in entry.source_patterns}
        found: dict[str, Parameter] = {}
        collected: dict[str, tuple[Any, dict[str, list[str]]]] = {}
        for name in sorted(tensors, key=dot_natural_key):
            target, pattern = self._rename(name)
            if target not in state:
                continue
            if pattern is None:
                found[target] = Parameter(shape=tensors[name].shape, places=(Place(tensor=name),))
            else:
                _, sources = collected.setdefault(target, (copy.deepcopy(by_pattern[pattern]), {}))
                sources.setdefault(pattern, []).append(name)
        for target, (converter, sources) in collected.items():
            places = tuple(self._places(converter, sources))
            if places:
                found[target] = Parameter(shape=tuple(state[target].shape), places=places)
        return found

    @cached_property
    def _state(self) -> Mapping[str, Any]:
        return self._model.state_dict()

    @cached_property
    def _rules(self) -> tuple[list[Any], list[Any]]:
        """Renamings and converters of the model."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def _rename(self, name: str) -> tuple[str, str | None]:
        """Return the model's name of a checkpoint's tensor, and the converter's pattern that it matched."""
        from transformers.core_model_loading import rename_source_key

        state = self._state
        found = rename_source_key(name, *self._rules, self._model.base_model_prefix, state)  # pyright: ignore[reportArgumentType]
        return (name, None) if found[0] not in state and name in state else found

    def _places(self, converter: Any, sources: Mapping[str, list[str]]) -> Iterator[Place]:
        """Yield the parts of a parameter that is stacked from experts, joined from tensors, or both."""
        kinds = [type(op).__name__ for op in converter.operations]
        stacked = kinds[:1] == ["MergeModulelist"] and converter.operations[0].dim == 0
        joined = kinds[-1:] == ["Concatenate"] and converter.operations[-1].dim == (1 if stacked else 0)
        if kinds != ["MergeModulelist"] * stacked + ["Concatenate"] * joined or not (stacked or joined):
            return
        first = 0
        for pattern in converter.source_patterns:
            names = sources.get(pattern, [])
            for expert, name in enumerate(names):
                yield Place(tensor=name, expert=expert if stacked else None, first=first)
            if names:
                first += self._checkpoint.tensors[names[0]].shape[0]
