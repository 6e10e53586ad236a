"""An adapter as modules with factors: what is concatenated, shortened and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Source
from ..checkpoint.adapter.patch import Patch, Product
from ..checkpoint.adapter.source import AdapterSource
from ..checkpoint.adapter.targets import without_prefix
from ..checkpoint.json_file import read_json
from ..checkpoint.open import open_adapter
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_CONFIG


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """`B·A` of one module, the scale in B.

    Attributes:
        a: float32, shape (experts, r, …): the input side, with the kernel of a convolution.
        b: float32, shape (d_out, r, experts, …), ones behind for a convolution.
        bias: What is added to the module's bias, or None.
    """

    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """r, of each expert."""
        return self.a.shape[1]


@dataclass(frozen=True, kw_only=True)
class Module:
    """Where a module's factors belong.

    Attributes:
        key: Its name in an adapter's file, PEFT's prefix included.
        pattern: The name that PEFT looks rank and alpha up for.
        embedding: Its factors are called `lora_embedding_A` and `lora_embedding_B`.
        by_name: It is a parameter that is adapted by name, not a module.
    """

    key: str
    pattern: str
    embedding: bool = False
    by_name: bool = False

    @property
    def name(self) -> str:
        """Its name in the model."""
        return without_prefix(self.key)


Place = frozenset[tuple[str, int | None, tuple[int, int] | None]]  # tensors of the base, experts, rows


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenAdapter:
    """An adapter over its base, module by module.

    Attributes:
        modules: By what of the base they change.
        whole: Tensor of the base to the adapter's tensor that takes its place.
    """

    path: Path
    file: AdapterSource
    content: dict[str, Any]
    modules: dict[Place, tuple[Module, Product]]
    biases: dict[str, Product]
    whole: dict[str, str]

    @classmethod
    def of(cls, path: Path, base: Source) -> OpenAdapter:
        """Open an adapter folder.

        Raises:
            CheckpointError: It is no adapter, or one whose factors do not tell all (DoRA, trained tokens).
        """
        file = open_adapter(path, base)
        products: dict[tuple[str, str], list[tuple[str, Product]]] = {}
        biases, whole = {}, {}
        for tensor, patch in file.patches.items():
            _refuse_more(path, tensor, patch)
            if patch.stored is not None:
                whole[tensor] = patch.stored
            if patch.product is None:
                continue
            if patch.product.a is None:
                biases[patch.product.b.partition(".lora_B.")[0]] = patch.product
            else:
                products.setdefault((patch.product.a, patch.product.b), []).append((tensor, patch.product))
        modules = {}
        for (a, _), parts in products.items():
            embedding = ".lora_embedding_A" in a
            key = a.partition(".lora_embedding_A" if embedding else ".lora_A")[0]
            place = frozenset((tensor, product.expert, product.rows) for tensor, product in parts)
            product = parts[0][1]
            by_name = product.key != without_prefix(key)
            module = Module(key=key, pattern=product.key, embedding=embedding, by_name=by_name)
            modules[place] = (module, product)
        return cls(
            path=path,
            file=file,
            content=read_json(file.path / ADAPTER_CONFIG),
            modules=modules,
            biases=biases,
            whole=whole,
        )

    def factors(self, place: Place, weight: float) -> Factors:
        """Return a module's factors in float32, B times its scale and `weight`."""
        module, product = self.modules[place]
        assert product.a is not None
        a, b = (self.file.read_own(name).astype(np.float32) for name in (product.a, product.b))
        experts, scale = product.experts, np.float32(weight * product.scale)
        bias = self.biases.get(module.key)
        return Factors(
            a=a.reshape(experts, len(a) // experts, *a.shape[1:]),
            b=(b * scale).reshape(len(b), b.shape[1] // experts, experts, *b.shape[2:]),
            bias=None if bias is None else self.file.read_own(bias.b).astype(np.float32) * scale,
        )


def _refuse_more(path: Path, tensor: str, patch: Patch) -> None:
    if patch.rows is not None:
        raise CheckpointError(
            f"`{path}` trains tokens of `{tensor}`, which is not a product of two factors",
            hint="merge it into the base, not into an adapter",
        )
    if patch.magnitude is not None:
        raise CheckpointError(
            f"`{path}` is a DoRA adapter (`{tensor}` has magnitudes), which is not a product of two factors",
            hint="merge it into the base, not into an adapter",
        )
