"""What is summed for one parameter while batches pass, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .placement import Placement


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Sums and counts of one tensor: arrays that broadcast to it."""

    sums: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    gram: np.ndarray | None = None


class ParameterStatistics:
    """Sums of squares of one parameter: one float64 array for each way in which it is used.

    Ways differ by the axes along which the sum varies: (1, d_in) as a linear weight, (V, 1) as an embedding,
    (E, 1, d_in) as a stack of experts.
    """

    def __init__(self, name: str, shape: Sequence[int], *, wants_gram: bool = False) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.wants_gram = wants_gram
        self.sums: dict[tuple[int, ...], Tensor] = {}
        self.counts: dict[tuple[int, ...], Tensor] = {}
        self.gram: Tensor | None = None
        self.ops: set[str] = set()
        self.num_uses = 0

    @property
    def seen(self) -> bool:
        """Whether any input was summed."""
        return bool(self.sums)

    @property
    def used(self) -> bool:
        """Whether any operation used the parameter, with inputs that can be summed or not."""
        return bool(self.sums or self.ops)

    def add(self, placement: Placement, values: Tensor, counts: Tensor) -> None:
        """Add sums that broadcast to a view of the parameter, and how many rows they are of.

        An axis of size 1 says that the sum is the same along it.
        """
        self.num_uses += 1
        self._accumulate(self.sums, placement, values)
        self._accumulate(self.counts, placement, counts)

    def _accumulate(self, into: dict[tuple[int, ...], Tensor], placement: Placement, values: Tensor) -> None:
        spread = self._in_parameter_axes(placement, values)
        term_shape = tuple(
            size if spread.shape[axis] > 1 or part != slice(0, size) else 1
            for axis, (size, part) in enumerate(zip(self.shape, placement.part, strict=True))
        )
        index = tuple(part if size > 1 else slice(None) for size, part in zip(term_shape, placement.part, strict=True))
        if term_shape not in into:
            into[term_shape] = torch.zeros(term_shape, dtype=torch.float64, device=spread.device)
        into[term_shape][index] += spread.to(into[term_shape].device)

    def _in_parameter_axes(self, placement: Placement, values: Tensor) -> Tensor:
        repeated = [k for k, run in enumerate(placement.axes) if not run and values.shape[k] > 1]
        if repeated:
            values = values.sum(repeated, keepdim=True)
        order: list[int] = []
        sizes: list[int] = []
        for axis, run in enumerate(placement.axes):
            for k in run:
                order.append(k)
                part = placement.part[k]
                sizes.append(part.stop - part.start if values.shape[axis] > 1 else 1)
        rest = [k for k in range(len(self.shape)) if k not in order]
        order += rest
        back = sorted(range(len(order)), key=order.__getitem__)
        return values.reshape(*sizes, *(1,) * len(rest)).permute(back)

    def add_gram(self, placement: Placement, gram: Tensor) -> None:
        """Add Σ x·xᵀ of a linear weight, or of the expert that the view is of."""
        leading = [k for k, size in enumerate(self.shape[:-2]) if size > 1]
        if self.gram is None:
            lead = tuple(self.shape[k] for k in leading)
            self.gram = torch.zeros(*lead, *gram.shape[-2:], dtype=torch.float64, device=gram.device)
        self.gram[tuple(placement.part[k] for k in leading)] += gram

    def dump(self) -> dict[str, np.ndarray]:
        """Return everything that was summed, by a key that `fill` takes."""
        found = {"sums " + _text(shape): value.cpu().numpy() for shape, value in self.sums.items()}
        found |= {"counts " + _text(shape): value.cpu().numpy() for shape, value in self.counts.items()}
        if self.gram is not None:
            found["gram"] = self.gram.cpu().numpy()
        return found | {f"op {op}": np.zeros(0) for op in self.ops}

    def fill(self, key: str, value: np.ndarray) -> None:
        """Take up what `dump` gave."""
        if key == "gram":
            self.gram = torch.from_numpy(value)
        elif key.startswith("op "):
            self.ops.add(key[3:])
        else:
            into = self.sums if key.startswith("sums ") else self.counts
            into[tuple(value.shape)] = torch.from_numpy(value)

    def finish(self) -> Terms:
        """Return the sums as NumPy arrays; those on an accelerator are fetched."""
        shapes = sorted(self.sums, reverse=True)
        counts = sorted(self.counts, reverse=True)
        return Terms(
            sums=tuple(self.sums[shape].cpu().numpy() for shape in shapes),
            counts=tuple(self.counts[shape].cpu().numpy() for shape in counts),
            gram=None if self.gram is None else self.gram.cpu().numpy(),
        )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
