"""A model whose weights are those of the merge, in the place of the base's: no second copy, gradients for α alone.

The weights are written before a forward. In the backward each weight's gradient is met with the adapters' parts as
soon as it is there, `∂L/∂α_k = Σ_t ⟨∂L/∂W_t, P_k(t)⟩`, and let go of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..fusion.checkpoint import Source
from ..fusion.checkpoint.adapter.module_names import ModelNames, ParameterPart
from ..fusion.errors import ModelError
from ..live.model import load_model
from .parts import LinearMerge, parts_of


@final
class MergedModel:
    """A model, and what the adapters add to it.

    Attributes:
        model: Of transformers; its weights are those of the last `set`.
        names: The tensors of the base that the adapters change.
        gradient: ∂L/∂α, summed over the backwards since `start_gradient`, shape (num_adapters,).
    """

    def __init__(self, base: Source, merge: LinearMerge, *, device: str = "cpu") -> None:
        self.base = base
        self.merge = merge
        loaded = load_model(base, device=device, dtype=torch.float32, may_stream=False)
        self.model = loaded.model.requires_grad_(False)
        self._device = loaded.device
        self._places = _places(base, dict(self.model.named_parameters(remove_duplicate=False)))
        self._adapters: Sequence[Source] = ()
        self._hooks: list[Any] = []
        self._cached: dict[str, list[Tensor]] = {}
        self._caches = False
        self.names: tuple[str, ...] = ()
        self.gradient = torch.zeros(0, dtype=torch.float64)

    def use(self, adapters: Sequence[Source]) -> None:
        """Take these adapters from now on.

        Raises:
            ModelError: One changes a tensor that the model does not have.
        """
        self.close()
        self._adapters = tuple(adapters)
        changed = frozenset[str]().union(*(adapter.changed or () for adapter in adapters))
        self.names = tuple(name for name in self.base.tensors if name in changed)
        unknown = sorted(changed - set(self._places))
        if unknown:
            raise ModelError(
                f"`{unknown[0]}` is changed by an adapter and is no parameter of `{type(self.model).__name__}`"
            )
        elements = sum(self.base.tensors[name].num_elements for name in self.names)
        # Kept where they take no more than the base itself; else made again for each forward and backward.
        self._caches = 4 * elements * len(adapters) <= self.base.nbytes
        by_parameter: dict[int, tuple[Tensor, list[str]]] = {}
        for name in self.names:
            parameter = self._places[name][0]
            by_parameter.setdefault(id(parameter), (parameter, []))[1].append(name)
        for parameter, names in by_parameter.values():
            parameter.requires_grad_(True)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._hook(names)))

    def close(self) -> None:
        """Put the base's weights back and let go of the adapters."""
        if self._adapters:
            self.set([0.0] * len(self._adapters))
        for hook in self._hooks:
            hook.remove()
        for name in self.names:
            self._places[name][0].requires_grad_(False)
        self._hooks, self._cached, self.names, self._adapters = [], {}, (), ()

    def parts(self, name: str) -> list[Tensor]:
        """Return P of each adapter for a tensor."""
        found = self._cached.get(name)
        if found is None:
            arrays = parts_of(name, self.base, self._adapters, self.merge)
            found = [torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays]
            if self._caches:
                self._cached[name] = found
        return found

    @torch.no_grad()
    def set(self, alpha: Sequence[float]) -> None:
        """Write `W_pre + Σ α_k·P_k` into the model."""
        for name in self.names:
            before = self.base.read(name).astype(np.float32).reshape(self.base.tensors[name].shape)
            value = torch.from_numpy(before).to(self._device)
            if any(alpha):
                for weight, part in zip(alpha, self.parts(name), strict=True):
                    value.add_(part, alpha=weight)
            self._view(name).copy_(value)

    def start_gradient(self) -> None:
        """Set the gradient to zero."""
        self.gradient = torch.zeros(len(self._adapters), dtype=torch.float64)

    def _view(self, name: str, grad: bool = False) -> Tensor:
        parameter, part = self._places[name]
        value = parameter.grad if grad else parameter.data
        assert value is not None
        if part.expert is not None:
            value = value[part.expert]
        rows = self.base.tensors[name].shape[:1]
        return value[part.first : part.first + rows[0]] if rows else value

    def _hook(self, names: Sequence[str]) -> Any:
        def meet(parameter: Tensor) -> None:
            for name in names:
                gradient = self._view(name, grad=True)
                dots = [torch.sum(gradient * part, dtype=torch.float64) for part in self.parts(name)]
                self.gradient += torch.stack(dots).cpu()
            parameter.grad = None

        return meet


def _places(base: Source, parameters: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ParameterPart]]:
    """Return where each tensor of the checkpoint lies in the model."""
    found = {name: (parameters[name], ParameterPart(tensor=name)) for name in base.tensors if name in parameters}
    if len(found) < len(base.tensors):
        for name, parameter in ModelNames(base).parameters.items():
            for part in parameter.parts:
                if name in parameters:
                    found.setdefault(part.tensor, (parameters[name], part))
    return found
