"""The statistics of all models of a fuse by output name, at once or block by block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from ..fusion.arithmetic.curvature import UNMEASURED, Curvature, Curvatures
from ..fusion.arithmetic.general_sides import weighted_sum
from ..fusion.arithmetic.two_sided import counted_together
from ..fusion.errors import MethodError
from ..fusion.run.prepared import Prepared
from .measured import Measured
from .models import MeasuredModel


def by_output(
    prepared: Prepared,
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    found: Sequence[Measured],
) -> Any:
    """Return the statistics of all models by output name: at once where they are known, else block by block.

    Raises:
        MethodError: Every tensor is looked at before any is fused, with matrices that would all be in memory.
    """
    protection, scope = prepared.settings.protection, prepared.method.scope
    counted = counted_together if len(prepared.plan.tuned) > 1 or protection is not None else dict
    num_models = len(prepared.plan.tuned) + 1
    # What is added up is in memory, unlike what is mapped from a file.
    adds_up = [model.weight for model in models if not model.place] not in ([], [1.0])
    known = [counted(one.curvature) for one in found if isinstance(one.curvature, Mapping)]
    if len(known) == len(found) and not adds_up:
        return _joined(names, models, known, num_models)
    if scope != "tensor" and protection is not None and protection.needs_gram:
        raise MethodError(
            f"a `scope` of {scope} needs all tensors before it fuses any, so the full Hessians of all "
            "would be held in memory",
            hint="`sculpt calibrate --full '*'` writes both sides' to files; give one of each as statistics",
        )
    if len(known) == len(found):
        from ..hessian.store.gram_store import by_block

        blocks = ({name: names[name] for name in block} for block in by_block(names))
        return (_joined(block, models, known, num_models) for block in blocks)
    parts = [iter([one.curvature]) if isinstance(one.curvature, Mapping) else one.curvature for one in found]
    return _joined_blocks(names, models, parts, num_models, counted)


def _joined(
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    sides: Sequence[Mapping[str, Curvature]],
    num_models: int,
) -> dict[str, Curvatures]:
    """Return each tensor's curvature in every model; a tensor that no model has seen has no entry."""
    measured = {0, *(model.place for model in models)}
    found: dict[str, Curvatures] = {}
    grams: dict[Hashable, np.ndarray] = {}
    for name, own in names.items():
        seen: list[list[tuple[float, Curvature]]] = [[] for _ in range(num_models)]
        for model, side in zip(models, sides, strict=True):
            curvature = side.get(own[model.place] or "")
            if curvature is not None:
                seen[model.place].append((model.weight, curvature))
        curvatures = tuple(
            weighted_sum(parts, grams) if parts else None if place in measured else UNMEASURED
            for place, parts in enumerate(seen)
        )
        if any(curvature is not None for curvature in curvatures):
            found[name] = curvatures
    return found


def _joined_blocks(
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    blocks: Sequence[Iterator[Mapping[str, Curvature]]],
    num_models: int,
    counted: Callable[[Mapping[str, Curvature]], Mapping[str, Curvature]],
) -> Iterator[dict[str, Curvatures]]:
    """Yield tensors that every model has seen, block by block; at the end those that only some have."""
    sides: list[dict[str, Curvature]] = [{} for _ in models]
    waiting = dict(names)
    for found in zip_longest(*blocks, fillvalue={}):
        for side, block in zip(sides, found, strict=True):
            side.update(counted(block))
        ready = {
            name: own
            for name, own in waiting.items()
            if all(own[model.place] in side for model, side in zip(models, sides, strict=True))
        }
        yield _joined(ready, models, sides, num_models)
        for name in ready:
            del waiting[name]
        for model, side in zip(models, sides, strict=True):
            still = {own[model.place] for own in waiting.values()}
            for name in [name for name in side if name not in still]:
                del side[name]
    yield _joined(waiting, models, sides, num_models)
