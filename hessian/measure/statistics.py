"""What is summed for one parameter while batches pass, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...live.terms import Terms
from .gram import GramSum, LastProduct
from .placement import Placement


class ReturnError(Exception):
    """A model came back to a parameter whose Σ x·xᵀ had been handed out as whole."""


SumKey = tuple[tuple[int, ...], tuple[int, ...]]  # shape of the parameter, its axes split as its views do; of the sum


class ParameterStatistics:
    """Sums of squares of one parameter: one float64 array for each way in which it is used.

    Ways differ by the axes along which the sum varies: (1, d_in) as a linear weight, (V, 1) as an embedding,
    (E, 1, d_in) as a stack of experts.

    Attributes:
        wants_gram: Whether Σ x·xᵀ is summed too.
        ops: Operations that used it and gave it no inputs that could be summed.
        num_uses: How often inputs were summed.
    """

    def __init__(
        self, name: str, shape: Sequence[int], *, wants_gram: bool = False, last: LastProduct | None = None
    ) -> None:
        """Begin at nothing.

        Args:
            last: Shared among parameters that may see the same inputs.
        """
        self.name = name
        self.shape = tuple(shape)
        self.wants_gram = wants_gram
        self.sums: dict[SumKey, Tensor] = {}
        self.counts: dict[SumKey, Tensor] = {}
        self._last = last or LastProduct()
        self._grams: dict[tuple[int, ...], GramSum] = {}
        self._stack: tuple[int, ...] = ()
        self._is_given = False
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
        # Rows that are given to a part of an axis are counted once for the part, not for each element of it.
        for part, size in zip(placement.part, placement.shape, strict=True):
            if part != slice(0, size):
                counts = counts / (part.stop - part.start)
        self._accumulate(self.counts, placement, counts)

    def _accumulate(self, into: dict[SumKey, Tensor], placement: Placement, values: Tensor) -> None:
        spread = _in_parameter_axes(placement, values)
        term_shape = tuple(
            size if spread.shape[axis] > 1 or part != slice(0, size) else 1
            for axis, (size, part) in enumerate(zip(placement.shape, placement.part, strict=True))
        )
        index = tuple(part if size > 1 else slice(None) for size, part in zip(term_shape, placement.part, strict=True))
        key = (placement.shape, term_shape)
        if key not in into:
            into[key] = torch.zeros(term_shape, dtype=torch.float64, device=spread.device)
        into[key][index].add_(spread.to(into[key].device))  # `+=` would also copy the part onto itself

    def add_gram(self, rows: Tensor, *, index: tuple[int, ...] = (), stack: tuple[int, ...] = ()) -> None:
        """Add rows to Σ x·xᵀ of a weight, or of one of the matrices that it is a stack of.

        Args:
            rows: (n, width), owned and weighted: `gram.own_rows`.
            index: Which of the stack, of shape `stack`.

        Raises:
            ReturnError: It has been handed out as whole.
        """
        if self._is_given:
            raise ReturnError(self.name)
        if self._grams and stack != self._stack:  # used whole, and in parts
            self.refuse_gram()
            return
        self._stack = stack
        if index not in self._grams:
            self._grams[index] = GramSum(rows.shape[-1], self._last)
        self._grams[index].add(rows)

    def add_linear_gram(self, placement: Placement, rows: Tensor) -> None:
        """Add rows to Σ x·xᵀ of a linear weight, or of the expert that the view is of; no part of a matrix has one."""
        leading = [k for k in range(len(self.shape) - 2) if self.shape[k] > 1]
        index = tuple(placement.part[k] for k in leading) if self._has_whole_matrices(placement) else None
        if index is None or any(part.stop - part.start > 1 for part in index):
            self.refuse_gram()
        else:
            stack = tuple(self.shape[k] for k in leading)
            self.add_gram(rows, index=tuple(part.start for part in index), stack=stack)

    def add_stacked_gram(self, placement: Placement, k: int, rows: Tensor) -> None:
        """Add rows to Σ x·xᵀ of the k-th matrix of a stack; a view of parts of its matrices has none."""
        if len(self.shape) == 3 and self._has_whole_matrices(placement):
            self.add_gram(rows, index=(k,), stack=self.shape[:1])
        else:
            self.refuse_gram()

    def _has_whole_matrices(self, placement: Placement) -> bool:
        last = range(max(0, len(self.shape) - 2), len(self.shape))
        return placement.shape == self.shape and all(placement.part[k] == slice(0, self.shape[k]) for k in last)

    def refuse_gram(self) -> None:
        """Have no Σ x·xᵀ: the parameter is used in a way that it has none for."""
        self.wants_gram = False
        self._grams = {}

    def _gram(self) -> np.ndarray | None:
        """Return Σ x·xᵀ, (width, width) behind the axes of the stack; zero where nothing was seen."""
        if not self._grams:
            return None
        if not self._stack:
            return self._grams[()].total().cpu().numpy()
        width = next(iter(self._grams.values())).width
        whole = np.zeros((*self._stack, width, width))
        for index, gram in self._grams.items():
            whole[index] = gram.total().cpu().numpy()
        return whole

    def forget_gram(self) -> None:
        """Let go of Σ x·xᵀ, which has been handed out whole."""
        self._is_given, self._grams = self.wants_gram, {}

    def dump(self) -> dict[str, np.ndarray]:
        """Return everything that was summed, by a key that `fill` takes."""
        found = {f"sums {_text(key)}": value.cpu().numpy() for key, value in self.sums.items()}
        found |= {f"counts {_text(key)}": value.cpu().numpy() for key, value in self.counts.items()}
        for index, gram in self._grams.items():
            found[f"gram {_joined_text(self._stack)} {_joined_text(index)}"] = gram.total().cpu().numpy()
        return found | {f"op {op}": np.zeros(0) for op in self.ops}

    def fill(self, key: str, value: np.ndarray) -> None:
        """Take up what `dump` gave."""
        kind, _, rest = key.partition(" ")
        if kind == "gram":
            stack, _, index = rest.partition(" ")
            gram = GramSum(value.shape[-1], self._last)
            gram.start_from(torch.from_numpy(value))
            self._stack, self._grams[_shape_of(index)] = _shape_of(stack), gram
        elif kind == "op":
            self.ops.add(rest)
        else:
            shape = _shape_of(rest.partition(" ")[0])
            (self.sums if kind == "sums" else self.counts)[shape, tuple(value.shape)] = torch.from_numpy(value)

    def finish(self) -> Terms:
        """Return the sums as NumPy arrays; those on an accelerator are fetched."""
        return Terms(
            sums=self._terms(self.sums),
            counts=self._terms(self.counts, shared=True),
            gram=self._gram(),
        )

    def _terms(self, sums: dict[SumKey, Tensor], *, shared: bool = False) -> tuple[np.ndarray, ...]:
        """Return one array for each way of use, in the parameter's own axes.

        `shared`: what an axis stands for is shared out among its elements rather than repeated, so that totals stay.
        """
        found: dict[tuple[int, ...], np.ndarray] = {}
        for key in sorted(sums, reverse=True):
            own = sums[key].cpu().numpy()
            term = _joined(own, key[0], self.shape)
            if shared:
                term = term * (own.size / term.size)
            found[term.shape] = found[term.shape] + term if term.shape in found else term
        return tuple(found[shape] for shape in sorted(found, reverse=True))


def _in_parameter_axes(placement: Placement, values: Tensor) -> Tensor:
    """Return values that broadcast to a view with their axes in the order of the parameter's."""
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
    rest = [k for k in range(len(placement.shape)) if k not in order]
    order += rest
    back = sorted(range(len(order)), key=order.__getitem__)
    return values.reshape(*sizes, *(1,) * len(rest)).permute(back)


def _joined(term: np.ndarray, split: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return a sum over split axes in the axes of the parameter; an axis along which nothing varies stays 1."""
    if split == shape:
        return term
    full, axis = [], 0
    spread = list(term.shape)
    for size in shape:
        stop, covered = axis, 1
        while covered < size or (stop == axis and stop < len(split)):
            covered *= split[stop]
            stop += 1
        if any(term.shape[k] > 1 for k in range(axis, stop)):
            spread[axis:stop] = split[axis:stop]
            full.append(size)
        else:
            full.append(1)
        axis = stop
    return np.ascontiguousarray(np.broadcast_to(term, tuple(spread))).reshape(full)


def _text(key: SumKey) -> str:
    return " ".join(map(_joined_text, key))


def _joined_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _shape_of(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x") if size)
