"""The parts of a merge as they are added to a running model's weights, and met with its gradients.

What an adapter adds to a matrix is held as its factors, not as the matrix. Where deltas are thinned out, a code beside
them says for each element which adapters have a part in it: a byte an element, however many adapters (up to eight)
there are. `P_k` then is made where it is needed, a block of rows at a time, so that on a CPU it stays in the cache.
What is no such product, such as a classifier that was saved whole, is held as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..fusion.checkpoint import Source
from .parts import LinearMerge, parts_of

BLOCK_ELEMENTS = 1 << 19  # of a piece on a CPU: small enough for its cache, large enough for an operation to count
MAX_CODED = 31  # adapters that a code of 32 bits has room for


class LiveParts(ABC):
    """P of each adapter for one tensor, which is seen as a stack of matrices.

    Attributes:
        shape: (stack, rows, columns) of the tensor.
    """

    shape: tuple[int, int, int]

    def blocks(self, device: torch.device) -> Iterator[tuple[int, slice]]:
        """Yield pieces of the tensor: a matrix of the stack, and some of its rows."""
        stack, rows, columns = self.shape
        height = rows if device.type != "cpu" else max(1, BLOCK_ELEMENTS // max(1, columns))
        for number in range(stack):
            for first in range(0, rows, max(1, height)):
                yield number, slice(first, min(rows, first + height))

    @abstractmethod
    def add(self, piece: Tensor, at: tuple[int, slice], alpha: Sequence[float]) -> None:
        """Add `Σ α_k·P_k` to a float32 piece of the tensor."""

    @abstractmethod
    def dots(self, gradient: Tensor, at: tuple[int, slice]) -> Tensor:
        """Return ⟨G, P_k⟩ of each adapter for a float32 piece of the gradient, shape (num_adapters,)."""


class WholeParts(LiveParts):
    """Parts that are held as they are."""

    def __init__(self, arrays: Sequence[np.ndarray], device: torch.device) -> None:
        shape = arrays[0].shape
        self.shape = (1, shape[0], prod(shape[1:])) if shape else (1, 1, 1)
        self._parts = [torch.from_numpy(np.ascontiguousarray(a)).view(self.shape).to(device) for a in arrays]

    def add(self, piece: Tensor, at: tuple[int, slice], alpha: Sequence[float]) -> None:
        """Add `Σ α_k·P_k`."""
        for weight, part in zip(alpha, self._parts, strict=True):
            piece.add_(part[at], alpha=weight)

    def dots(self, gradient: Tensor, at: tuple[int, slice]) -> Tensor:
        """Return ⟨G, P_k⟩."""
        return torch.stack([torch.sum(gradient * part[at]) for part in self._parts])


def _shape(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> tuple[int, int, int]:
    return lefts[0].shape[0], lefts[0].shape[1], rights[0].shape[2]


class SummedProducts(LiveParts):
    """Products of thin matrices, with all of their elements."""

    def __init__(self, lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> None:
        self.shape = _shape(lefts, rights)
        self._ranks = [left.shape[2] for left in lefts]
        self._left, self._right = torch.cat(list(lefts), dim=2), torch.cat(list(rights), dim=1)

    def add(self, piece: Tensor, at: tuple[int, slice], alpha: Sequence[float]) -> None:
        """Add `Σ α_k·P_k`, in one product."""
        weights = [weight for weight, rank in zip(alpha, self._ranks, strict=True) for _ in range(rank)]
        piece.addmm_(self._left[at] * self._left.new_tensor(weights), self._right[at[0]])

    def dots(self, gradient: Tensor, at: tuple[int, slice]) -> Tensor:
        """Return ⟨G, L_k·R_k⟩ = ⟨G·R_kᵀ, L_k⟩."""
        met = ((gradient @ self._right[at[0]].T) * self._left[at]).sum(0)
        return torch.stack([part.sum() for part in met.split(self._ranks)])


class CodedProducts(LiveParts):
    """Products of thin matrices, of whose elements a code says which count."""

    def __init__(self, lefts: Sequence[Tensor], rights: Sequence[Tensor], code: Tensor, *, divided: bool) -> None:
        self.shape = _shape(lefts, rights)
        self._lefts, self._rights, self._code, self._divided = lefts, rights, code, divided

    def _masks(self, at: tuple[int, slice]) -> tuple[list[Tensor], Tensor]:
        """Return where each adapter has a part, and by what their sum is divided."""
        code = self._code[at]
        masks = [(code >> k) & 1 for k in range(len(self._lefts))]
        number = masks[0]
        for mask in masks[1:]:
            number = number + mask
        return masks, number.clamp(min=1)

    def add(self, piece: Tensor, at: tuple[int, slice], alpha: Sequence[float]) -> None:
        """Add `Σ α_k·P_k`."""
        masks, number = self._masks(at)
        total = torch.zeros_like(piece)
        for weight, left, right, mask in zip(alpha, self._lefts, self._rights, masks, strict=True):
            total.addcmul_(left[at] @ right[at[0]], mask.to(piece.dtype), value=weight)
        piece.add_(total.div_(number) if self._divided else total)

    def dots(self, gradient: Tensor, at: tuple[int, slice]) -> Tensor:
        """Return ⟨G, P_k⟩."""
        masks, number = self._masks(at)
        gradient = gradient / number if self._divided else gradient
        pairs = zip(self._lefts, self._rights, masks, strict=True)
        return torch.stack([torch.sum(((gradient * mask) @ right[at[0]].T) * left[at]) for left, right, mask in pairs])


def live_parts(
    name: str, base: Source, adapters: Sequence[Source], merge: LinearMerge, device: torch.device
) -> LiveParts:
    """Return the parts of one tensor of the base, in the smallest form that there is for them."""
    changing = [adapter.changed is not None and name in adapter.changed for adapter in adapters]
    found = [adapter.low_rank(name) if changes else None for adapter, changes in zip(adapters, changing, strict=True)]
    known = next((product for product in found if product is not None), None)
    is_product = known is not None and all(
        product is not None or not changes for product, changes in zip(found, changing, strict=True)
    )
    if known is None or not is_product or len(adapters) > MAX_CODED:
        return WholeParts(parts_of(name, base, adapters, merge).arrays, device)
    stack, rows, columns = known.shape
    lefts, rights = [], []
    for product in found:
        left = np.zeros((stack, rows, 0), np.float32) if product is None else product.left * np.float32(product.scale)
        right = np.zeros((stack, 0, columns), np.float32) if product is None else product.right
        lefts.append(torch.from_numpy(left).to(device))
        rights.append(torch.from_numpy(np.ascontiguousarray(right)).to(device))
    if merge.chain is None:
        for adapter in adapters:
            adapter.release(name)
        return SummedProducts(lefts, rights)
    thinned = parts_of(name, base, adapters, merge)
    code = np.zeros(known.shape, np.uint8 if len(adapters) <= 8 else np.int32)
    for k, array in enumerate(thinned.arrays):
        code |= (array.reshape(known.shape) != 0).astype(code.dtype) << k
    lefts = [left * factor for left, factor in zip(lefts, thinned.factors, strict=True)]
    return CodedProducts(lefts, rights, torch.from_numpy(code).to(device), divided=thinned.divided)
