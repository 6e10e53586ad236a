"""A model whose weights are those of the merge, in the place of the base's: no second copy, gradients for α alone.

The weights are written before a forward. In the backward each weight's gradient is met with the adapters' parts as
soon as it is there, `∂L/∂α_k = Σ_t ⟨∂L/∂W_t, P_k(t)⟩`, and let go of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ..fusion.checkpoint import Source
from ..fusion.checkpoint.adapter.module_names import ModelNames, ParameterPart
from ..fusion.errors import ModelError
from ..live.model import as_torch, load_model
from .live_parts import LiveParts, live_parts
from .parts import LinearMerge


@final
class MergedModel:
    """A model, and what the adapters add to it.

    Attributes:
        model: Of transformers; its weights are those of the last `set`.
        names: The tensors of the base that the adapters change.
        gradient: ∂L/∂α, summed over the backwards since `start_gradient`, shape (num_adapters,).
    """

    def __init__(
        self, base: Source, merge: LinearMerge, *, device: str = "cpu", dtype: str | torch.dtype = torch.float32
    ) -> None:
        self.base = base
        self.merge = merge
        loaded = load_model(base, device=device, dtype=dtype, may_stream=False)
        self.model = loaded.model.requires_grad_(False)
        self._device = loaded.device
        self._places = _places(base, dict(self.model.named_parameters(remove_duplicate=False)))
        self._adapters: Sequence[Source] = ()
        self._hooks: list[Any] = []
        self._parts: dict[str, LiveParts] = {}
        self._before: dict[str, Tensor] = {}
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
                f"`{unknown[0]}` is changed by an adapter, but is not a parameter of `{type(self.model).__name__}`"
            )
        by_parameter: dict[int, tuple[Tensor, list[str]]] = {}
        for name in self.names:
            parameter = self._places[name][0]
            by_parameter.setdefault(id(parameter), (parameter, []))[1].append(name)
            self._parts[name] = live_parts(name, self.base, self._adapters, self.merge, self._device)
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
        self._hooks, self._parts, self.names, self._adapters = [], {}, (), ()

    @torch.no_grad()
    def set(self, alpha: Sequence[float]) -> None:
        """Write `W_pre + Σ α_k·P_k` into the model, added up in float32."""
        adds = any(alpha)
        for name in self.names:
            parts = self._parts[name]
            before, now = self._unmerged(name).view(parts.shape), self._view(name).view(parts.shape)
            for at in parts.blocks(self._device) if adds else [(slice(None), slice(None))]:
                piece = before[at]
                if adds:
                    piece = piece.to(torch.float32, copy=True)
                    parts.add(piece, at, alpha)  # pyright: ignore[reportArgumentType] (a block's)
                now[at].copy_(piece)

    def start_gradient(self) -> None:
        """Set the gradient to zero."""
        self.gradient = torch.zeros(len(self._adapters), dtype=torch.float64)

    def _unmerged(self, name: str) -> Tensor:
        """Return the base's tensor: as its file is mapped, or a copy on a device to which that is a long way."""
        found = self._before.get(name)
        if found is None:
            found = as_torch(self.base.read(name))
            if self._device.type != "cpu":
                found = self._before[name] = found.to(self._device)
        return found

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
                parts = self._parts[name]
                gradient = self._view(name, grad=True).reshape(parts.shape)
                dots = [parts.dots(gradient[at].float(), at) for at in parts.blocks(self._device)]
                self.gradient += torch.stack(dots).cpu().double().sum(0)
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
