"""The factors of an adapter by themselves, with no base at hand: A and B of each module, as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from ..checkpoint import Asked, find_model
from ..checkpoint.adapter.config import ADAPTER_WEIGHTS, AdapterConfig, is_adapter
from ..checkpoint.adapter.targets import FACTOR, without_prefix
from ..checkpoint.companions import further_weights
from ..checkpoint.identity import identities, refuse_changed
from ..checkpoint.tensor_file import open_file
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_CONFIG

A_KINDS, B_KINDS = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One adapted module.

    Attributes:
        name: The module's name in the model.
        a, b: Names of its factors in the adapter's file.
    """

    name: str
    a: str
    b: str


@final
class LoneAdapter:
    """An adapter folder without its base.

    Attributes:
        folder: Where it lies.
        config: Its configuration.
        pairs: Its modules, in the order of the file.

    Raises:
        CheckpointError: It is no adapter, not LoRA, or a factor lacks its partner.
    """

    def __init__(self, asked: Asked) -> None:
        folder = find_model(asked).path
        if not is_adapter(folder):
            raise CheckpointError(f"`{asked}` is not an adapter: it holds no `{ADAPTER_CONFIG}`")
        self.folder = folder
        self._identities = identities([folder / ADAPTER_CONFIG])
        self.config = AdapterConfig.read(folder)
        file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise CheckpointError(f"`{folder}` holds no `{ADAPTER_WEIGHTS[0]}`")
        further = further_weights(folder, [file])
        if further:
            raise CheckpointError(
                f"`{further[0]}` was trained beside the adapter, and an adapter cannot store it",
                hint="merge the adapter into the base, which reads this file too, or move the file away",
            )
        self._file = open_file(file)
        self.pairs = tuple(self._pairs())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its tensors."""
        return tuple(self._file.tensors)

    def read(self, name: str) -> np.ndarray:
        """Return one of its tensors as it is stored."""
        return self._file.read(name).reshape(self._file.tensors[name].shape)

    def refuse_changed(self) -> None:
        """Raise CheckpointError where a file has changed since it was opened."""
        refuse_changed({**self._identities, self._file.file: self._file.identity})

    def factors(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Return A, (experts, r, d_in), and B, (experts, d_out, r), in float32; one expert but for fused ones.

        PEFT stacks experts as A (experts·r, d_in) and B (d_out, r·experts): the expert is outer in A, inner in B.
        """
        a, b = (self.read(name).astype(np.float32) for name in (pair.a, pair.b))
        rank = self.config.rank_of(pair.name)
        experts = len(a) // rank if len(a) % rank == 0 else 1
        if a.shape[0] != b.shape[1]:
            raise CheckpointError(f"`{pair.name}` in `{self.folder}` has factors {list(b.shape)} and {list(a.shape)}")
        a = a.reshape(experts, len(a) // experts, -1)
        return a, np.ascontiguousarray(b.reshape(len(b), a.shape[1], experts).transpose(2, 0, 1))

    def _pairs(self) -> Iterator[Pair]:
        found: dict[str, dict[str, str]] = {}
        for name in self._file.tensors:
            matched = FACTOR.fullmatch(name)
            if matched is None or matched[3] == "bias":
                continue
            side = "a" if matched[2] in A_KINDS else "b" if matched[2] in B_KINDS else None
            if side is not None:
                found.setdefault(matched[1], {})[side] = name
        for key, sides in found.items():
            if set(sides) != {"a", "b"}:
                raise CheckpointError(f"`{key}` in `{self.folder}` has not one A and one B")
            yield Pair(name=without_prefix(key), **sides)
        if not found:
            raise CheckpointError(f"`{self.folder}` adapts no module")
