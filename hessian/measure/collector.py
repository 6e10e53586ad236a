"""From the sums of parameters to the curvature of the checkpoint's tensors, as they become whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.checkpoint import Source
from ...fusion.errors import CurvatureError
from ...live.conversions import num_rows
from ...live.model import read_tensor
from ...live.names import Assembly
from ...live.privates import tied_names
from ...live.skeleton import Skeleton
from ...live.terms import Terms
from ..store.diagonal import add_curvature
from .statistics import ParameterStatistics


@dataclass(frozen=True)
class _HandedOut:
    """An assembly whose statistics were handed out, and how many uses they counted."""

    assembly: Assembly
    num_uses: int


class Collector:
    """Hands out the curvature of each tensor once no later unit adds to it."""

    def __init__(
        self,
        checkpoint: Source,
        skeleton: Skeleton,
        statistics: Mapping[str, ParameterStatistics],
        wanted: frozenset[str],
    ) -> None:
        self.checkpoint = checkpoint
        self.model = skeleton.model
        self.statistics = statistics
        self.wanted = wanted
        self._pending = list(skeleton.names.assemblies)
        self._given: list[_HandedOut] = []
        self._targets = {name: r.targets for r in skeleton.names.assemblies for name in r.source_names}
        self._twins = self._find_twins(skeleton)

    def _find_twins(self, skeleton: Skeleton) -> list[tuple[str, str]]:
        """Return pairs that the config ties but the checkpoint stores twice, equal: each is used in both ways."""
        sources = {r.targets[0]: r.source_names[0] for r in skeleton.names.assemblies if not r.steps}
        found = set()
        for target, source in tied_names(self.model).items():
            first, second = sources.get(source), sources.get(target)
            if first is not None and second is not None and first != second and self._equal(first, second):
                found.add((first, second))
        return sorted(found)

    def _equal(self, first: str, second: str) -> bool:
        ours, theirs = self.checkpoint.read(first), self.checkpoint.read(second)
        return np.array_equal(ours.view(np.uint8), theirs.view(np.uint8))

    def settled(self, open_parameters: Collection[str] | None, *, once: bool = False) -> dict[str, Curvature]:
        """Return the curvature of tensors that are whole by now.

        Args:
            open_parameters: Those that a later unit may add to; None at the end of the forward, when what was handed
                out and has changed since comes again.
            once: What is handed out is not held any longer: Σ x·xᵀ is let go of.

        Raises:
            CurvatureError: A sum is not finite.
        """
        ended = open_parameters is None
        if ended:
            self._pending += [given.assembly for given in self._given if self._uses(given.assembly) != given.num_uses]
        still_open = set(open_parameters or ())
        held = set() if ended else {name for pair in self._twins for name in pair}
        found: dict[str, Curvature] = {}
        pending, self._pending = self._pending, []
        for assembly in pending:
            if still_open.intersection(assembly.targets) or held.intersection(assembly.source_names):
                self._pending.append(assembly)
                continue
            self._given.append(_HandedOut(assembly, self._uses(assembly)))
            found |= self._curvatures(assembly)
            if once:
                self._forget_grams(assembly)
        if ended:
            self._join_twins(found)
        return _sharing_equal_grams(found)

    def returned_to(self) -> str | None:
        """Return a tensor that was handed out and has been used again since, if there is one."""
        changed = (g.assembly.source_names[0] for g in self._given if self._uses(g.assembly) != g.num_uses)
        return next(changed, None)

    def _uses(self, assembly: Assembly) -> int:
        statistics = self.statistics
        return sum(statistics[target].num_uses for target in assembly.targets if target in statistics)

    def _curvatures(self, assembly: Assembly) -> dict[str, Curvature]:
        statistics = self.statistics
        terms = {t: statistics[t].finish() for t in assembly.targets if t in statistics and statistics[t].seen}
        moved = assembly.pull_back(terms)
        return {name: _curvature(name, own, self.checkpoint) for name, own in moved.items() if name in self.wanted}

    def _forget_grams(self, assembly: Assembly) -> None:
        statistics = self.statistics
        for target in assembly.targets:
            if target in statistics:
                statistics[target].forget_gram()

    def _join_twins(self, found: dict[str, Curvature]) -> None:
        for first, second in self._twins:
            if first in found and second in found:
                found[first] = found[second] = add_curvature(found[first], found[second])

    def why_missing(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Return for each tensor of the checkpoint without statistics the reason."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name: self._reason(name, parameters) for name in self.checkpoint.tensors if name not in found}

    def _reason(self, name: str, parameters: set[str]) -> str:
        targets = self._targets.get(name, ())
        statistics = self.statistics
        own = [statistics[target] for target in targets if target in statistics]
        ops = sorted({op for entry in own for op in entry.ops})
        if not targets:
            return f"no part of `{type(self.model).__name__}`"
        if not self.checkpoint.tensors[name].kind.fusible:
            return "not a float tensor"
        if not parameters.intersection(targets):
            return "a buffer, not a parameter"
        if name not in self.wanted:
            return "the same as in the base"
        if any(entry.seen for entry in own):
            return "made by a conversion that statistics cannot be moved back through"
        if ops:
            return f"used by `{'`, `'.join(ops)}`, which gives it no inputs of its own"
        return "never reached by the data"


def _sharing_equal_grams(curvatures: dict[str, Curvature]) -> dict[str, Curvature]:
    """Return the same with one array for equal Σ x·xᵀ: q, k and v see the same inputs, so do gate and up."""
    kept: dict[tuple[object, ...], np.ndarray] = {}
    found = {}
    for name, curvature in curvatures.items():
        gram = curvature.gram
        if gram is not None:
            first = kept.setdefault((gram.shape, np.diagonal(gram, axis1=-2, axis2=-1).tobytes()), gram)
            if first is not gram and np.array_equal(first, gram):
                curvature = replace(curvature, gram=first)
        found[name] = curvature
    return found


def _first_not_finite(checkpoint: Source) -> str | None:
    """Return the first tensor of a checkpoint that holds NaN or infinity."""
    for name, info in checkpoint.tensors.items():
        if info.kind.fusible and not bool(read_tensor(checkpoint, name).isfinite().all()):
            return name
    return None


def _curvature(name: str, terms: Terms, checkpoint: Source) -> Curvature:
    if not all(np.isfinite(term).all() for term in terms.sums):
        weight = _first_not_finite(checkpoint)
        if weight is not None:
            raise CurvatureError(
                f"`{weight}` of `{checkpoint.ref}` holds NaN or infinity, so the model gives no numbers"
            )
        raise CurvatureError(
            f"the inputs of `{name}` hold NaN or infinity",
            hint="a wider `dtype` may help; float16 overflows at 65504",
            options=["dtype"],
        )
    gram = None if terms.gram is None else terms.gram.astype(np.float32)
    return Curvature(terms=terms.sums, num_tokens=num_rows(terms), gram=gram, part_tokens=_part_tokens(terms))


def _part_tokens(terms: Terms) -> tuple[int, ...] | None:
    """Return the rows of each expert of a stack."""
    stacked = [counts for counts in terms.counts if counts.ndim > 2 and counts.shape[0] > 1]
    return tuple(round(float(part.sum())) for part in stacked[0]) if stacked else None
