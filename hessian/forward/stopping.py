"""When a forward may end before the model does: nothing that follows is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...live.units import Unit
from ..measure.statistics import ParameterStatistics


def final_parameter(
    model: Any, units: Sequence[Unit], unit: Unit, statistics: Mapping[str, ParameterStatistics]
) -> ParameterStatistics | None:
    """Return the parameter whose inputs are the last that are wanted, if it is in this unit: the output head's.

    The product itself, tokens times vocabulary, is then never made. None where a later unit is wanted too, or the
    head has a bias, which is added after the product.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not unit.module or getattr(head, "bias", None) is not None:
        return None
    own = {id(statistics[name]) for name in unit.parameters if name in statistics}
    later = (
        name
        for other in units[unit.index + 1 :]
        for name in other.parameters
        if name in statistics and id(statistics[name]) not in own
    )
    return None if any(True for _ in later) else statistics.get(f"{unit.name}.weight")


def all_passed(units: Sequence[Unit], passed: Collection[int], statistics: Mapping[str, ParameterStatistics]) -> bool:
    """Return whether all batches have passed every unit that holds a parameter that is measured."""
    return all(unit.index in passed or not any(name in statistics for name in unit.parameters) for unit in units)
