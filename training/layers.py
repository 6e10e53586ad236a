"""The layers of a live PEFT model that are adapted: their factors, and the weights that they are added to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..fusion.checkpoint.adapter.targets import PREFIX, without_prefix
from ..fusion.errors import ModelError

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedLayer:
    """One adapted module.

    Attributes:
        name: In the model, without what PEFT and wrappers put around it.
        a, b: The factors, (r, d_in) and (d_out, r) for a linear layer.
        scaling: s, by which B·A is multiplied when it is added to the weight.
        module: PEFT's layer.
    """

    name: str
    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    module: Any

    def weight(self) -> Tensor:
        """Return the frozen weight W in the layout of B·A, (d_out, d_in), as stored.

        Raises:
            ModelError: It is quantised, or no matrix.
        """
        weight = whole(self.module.get_base_layer().weight.detach())
        if not weight.is_floating_point():
            raise ModelError(
                f"the weight of `{self.name}` is stored as {weight.dtype}, which a regulariser cannot read",
                hint="load the base unquantised, or train without the regulariser",
            )
        if getattr(self.module, "fan_in_fan_out", False):
            weight = weight.T
        if weight.shape != (self.b.shape[0], self.a.shape[1]) or self.a.ndim != 2:
            raise ModelError(f"`{self.name}` is not a linear layer, and a regulariser needs one")
        return weight


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP has sharded (a DTensor) as a whole one, differentiably; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def adapted_layers(model: Any) -> list[AdaptedLayer]:
    """Return the layers with a trainable LoRA, in the order of the model.

    Raises:
        ModelError: There is none, or their factors are hidden in flat shards.
    """
    found = []
    for path, module in model.named_modules():
        for factors, embedded in (("lora_A", False), ("lora_embedding_A", True)):
            pairs = getattr(module, factors, None)
            if not isinstance(pairs, (nn.ModuleDict, nn.ParameterDict)):
                continue
            others = getattr(module, factors.replace("A", "B"))
            for adapter in module.active_adapters:
                if adapter not in pairs:
                    continue
                sides: list[Any] = [group[adapter] if embedded else group[adapter].weight for group in (pairs, others)]
                a, b = sides
                if a.requires_grad and b.requires_grad:
                    found.append(_layer(path, module, adapter, a, b))
    if not found:
        raise ModelError("the model has no trainable LoRA", hint="wrap it by `peft.get_peft_model` first")
    return found


def _layer(path: str, module: Any, adapter: str, a: nn.Parameter, b: nn.Parameter) -> AdaptedLayer:
    parts = [part for part in path.split(".") if part not in WRAPPERS]
    name = without_prefix(PREFIX + ".".join(parts).removeprefix(PREFIX))
    if a.ndim < 2 or b.ndim < 2 or not a.numel() or not b.numel():
        raise ModelError(
            f"the factors of `{name}` are in flat shards, without rows and columns",
            hint="use version 2 of FSDP, or ZeRO up to stage 2",
        )
    return AdaptedLayer(name=name, a=a, b=b, scaling=float(module.scaling[adapter]), module=module)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a module is meant: by a glob of its whole name, or by its last part."""
    return any(fnmatchcase(name, pattern) or name.rpartition(".")[2] == pattern for pattern in patterns)
