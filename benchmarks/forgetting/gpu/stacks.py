"""A decoder's weights as stacks: what every layer has is one tensor, with the layers first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAYER = re.compile(r"\.layers\.(\d+)\.")
# Inputs that several matrices see, by the one that is watched.
SEEN_WITH = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}
# Norms, by a matrix that sees what they give.
AFTER = {"input_layernorm": "self_attn.q_proj", "post_attention_layernorm": "mlp.gate_proj", "model.norm": "head"}
EMBEDDINGS = "model.embed_tokens"
HEAD = "head"
Stacks = dict[str, Tensor]  # by kind: (layers, …)


def kind_of(name: str) -> tuple[str, int]:
    """Return the kind of a parameter, and its layer."""
    found = LAYER.search(name)
    name = name.removesuffix(".weight")
    return (LAYER.split(name)[2], int(found[1])) if found else (name, 0)


@dataclass(frozen=True)
class Layout:
    """Which parameter lies where.

    Attributes:
        names: By kind, the parameters of the layers in their order.
    """

    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: Any) -> Layout:
        found: dict[str, list[tuple[int, str]]] = {}
        for name, _ in model.named_parameters():  # tied ones once
            kind, layer = kind_of(name)
            found.setdefault(kind, []).append((layer, name))
        return cls({kind: tuple(name for _, name in sorted(names)) for kind, names in found.items()})

    def stacked(self, state: Mapping[str, Tensor], device: torch.device) -> Stacks:
        """Return float32 stacks of a state."""
        return {
            kind: torch.stack([state[name].to(device, torch.float32) for name in names])
            for kind, names in self.names.items()
        }

    @torch.no_grad()
    def place(self, model: Any, base: Stacks, delta: Stacks) -> None:
        """Give a model the base's weights and a delta, rounded once."""
        named = dict(model.named_parameters())
        for kind, names in self.names.items():
            whole = base[kind] + delta[kind] if kind in delta else base[kind]
            for name, one in zip(names, whole, strict=True):
                named[name].copy_(one)


def matrices(stacks: Stacks) -> Iterator[str]:
    """Yield the kinds that are matrices."""
    for kind, stack in stacks.items():
        if stack.ndim == 3:
            yield kind


def inputs_of_kind(kind: str) -> str:
    """Return whose inputs a matrix sees; of embeddings, which are tied, those of the output layer."""
    return HEAD if kind == EMBEDDINGS else SEEN_WITH.get(kind, kind)
