"""Ranges of options, worded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ..arithmetic.per_model import PerModel, as_tuple
from ..errors import MethodError


def each(option: str, value: PerModel, check: Callable[[str, float], None]) -> None:
    """Check one value, or each of several."""
    for one in as_tuple(value):
        check(option, one)


def finite(option: str, value: float) -> None:
    """Raise MethodError unless `value` is a number."""
    if not math.isfinite(value):
        raise MethodError(f"{option} must be a finite number, got {value:g}")


def fraction(option: str, value: float) -> None:
    """Raise MethodError unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        hint = f"did you mean {value / 100:g}?" if 1 < value <= 100 else None
        raise MethodError(f"{option} must lie between 0 and 1, got {value:g}", hint=hint)


def at_least_zero(option: str, value: float) -> None:
    """Raise MethodError unless `value` is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise MethodError(f"{option} must be a finite number of at least 0, got {value:g}")


def one_of(option: str, value: str, choices: Collection[str]) -> None:
    """Raise MethodError unless `value` is among the choices."""
    if value not in choices:
        raise MethodError(f"{option} must be one of {', '.join(choices)}, got `{value}`")


def averages(option: str, value: float | tuple[float, ...]) -> None:
    """Raise MethodError unless the values can be the weights of an average: none negative, not all 0."""
    each(option, value, at_least_zero)
    if not any(as_tuple(value)):
        raise MethodError(f"{option} are all 0, expected one that counts")
