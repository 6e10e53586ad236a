"""Where the parameters of a transformers model lie in a checkpoint whose names are not the model's own.

An adapter names the model's modules. Mostly the checkpoint's names are the same. Where they are not (LLaVA's
prefixes, fused experts), transformers' rules for loading tell, applied to the model on the meta device: no weight is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from ...errors import CheckpointError, SculptError, first_line
from ..loading_rules import Converted, LoadingRules, named_class
from ..pretrained import load_config

if TYPE_CHECKING:
    from ..source import Source
    from ..tensor_info import TensorInfo


@dataclass(frozen=True, kw_only=True)
class ParameterPart:
    """A checkpoint tensor that is a parameter, or a part of one.

    Attributes:
        expert: Which slice of the parameter's first dimension it is, or None for all of it.
        first: At which of the parameter's rows it begins.
    """

    tensor: str
    expert: int | None = None
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelParameter:
    """A parameter of the model: its shape, and the tensors that it is made of."""

    shape: tuple[int, ...]
    parts: tuple[ParameterPart, ...]


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

            loaded = load_config(self._checkpoint)
            cls = named_class(config)
            if cls is None:
                raise ValueError(f"it has none of the classes {config.get('architectures')}")
            with torch.device("meta"):
                return cls(loaded)
        except SculptError:
            raise
        except Exception as error:  # transformers raises anything on what it does not know
            raise CheckpointError(f"transformers cannot build the model of `{folder}`: {first_line(error)}") from error

    def is_transposed(self, module: str) -> bool | None:
        """Return whether a module stores its weights (d_in, d_out); None for a module that is not there."""
        try:
            found = self._model.get_submodule(module)
        except AttributeError:
            return None
        return type(found).__name__ == "Conv1D" or bool(getattr(found, "is_transposed", False))

    def output_embeddings(self) -> tuple[str, tuple[int, ...]]:
        """Return the name of the output's vocabulary matrix, and its shape.

        Raises:
            CheckpointError: The model has none.
        """
        found = self._model.get_output_embeddings()
        for name, module in self._model.named_modules():
            if found is not None and module is found:
                return f"{name}.weight", tuple(module.weight.shape)
        raise CheckpointError(f"the model of `{self._checkpoint.ref}` has no output vocabulary")

    def kinds_of(self, module: str) -> frozenset[str]:
        """Return the names of a module's class and of those that it inherits from."""
        return frozenset(cls.__name__ for cls in type(self._model.get_submodule(module)).__mro__)

    def groups_of(self, module: str) -> int:
        """Return the groups of a convolution."""
        return self._model.get_submodule(module).groups

    def find(self, name: str) -> ModelParameter | None:
        """Return a parameter by its name in the model, or by one that transformers renames on loading."""
        known = self.parameters
        return known.get(name) or known.get(self._rules.rename(name)[0])

    @cached_property
    def _rules(self) -> LoadingRules:
        return LoadingRules(self._model)

    @cached_property
    def parameters(self) -> Mapping[str, ModelParameter]:
        """Parameter name to the tensors that make it; those that no tensor makes are left out."""
        return self.made_of(self._checkpoint.tensors)

    def made_of(self, tensors: Mapping[str, TensorInfo]) -> dict[str, ModelParameter]:
        """Return the parameters that the tensors of a checkpoint of this model make, whatever they are called there."""
        names = self._rules.sort(tensors)
        found = {
            target: ModelParameter(shape=tensors[name].shape, parts=(ParameterPart(tensor=name),))
            for target, name in names.plain.items()
        }
        for converted in names.converted:
            parts = tuple(_parts(converted, tensors))
            if parts:
                shape = tuple(self._rules.state[converted.first].shape)
                found[converted.first] = ModelParameter(shape=shape, parts=parts)
        return found


def _parts(converted: Converted, tensors: Mapping[str, TensorInfo]) -> Iterator[ParameterPart]:
    """Yield the parts of a parameter that is stacked from experts, joined from tensors, or both."""
    operations = converted.converter.operations
    kinds = [type(op).__name__ for op in operations]
    stacked = kinds[:1] == ["MergeModulelist"] and operations[0].dim == 0
    joined = kinds[-1:] == ["Concatenate"] and operations[-1].dim == (1 if stacked else 0)
    if kinds != ["MergeModulelist"] * stacked + ["Concatenate"] * joined or not (stacked or joined):
        return
    first = 0
    for pattern in converted.converter.source_patterns:
        names = converted.sources.get(pattern, ())
        for expert, name in enumerate(names):
            yield ParameterPart(tensor=name, expert=expert if stacked else None, first=first)
        if names:
            first += tensors[names[0]].shape[0]
