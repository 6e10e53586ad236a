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


def _refused(option: str, expected: str, got: str, *, hint: str | None = None) -> MethodError:
    return MethodError(f"`{option}` must {expected}, got {got}", hint=hint, options=[option])


def _number(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused(option, "be a number", f"`{value}`")


def finite(option: str, value: float) -> None:
    """Raise MethodError unless `value` is a number."""
    _number(option, value)
    if not math.isfinite(value):
        raise _refused(option, "be a finite number", f"{value:g}")


def fraction(option: str, value: float) -> None:
    """Raise MethodError unless `value` lies in [0, 1]."""
    _number(option, value)
    if not 0 <= value <= 1:
        hint = f"did you mean {value / 100:g}?" if 1 < value <= 100 else None
        raise _refused(option, "lie between 0 and 1", f"{value:g}", hint=hint)


def at_least_zero(option: str, value: float) -> None:
    """Raise MethodError unless `value` is finite and not negative."""
    _number(option, value)
    if not (math.isfinite(value) and value >= 0):
        raise _refused(option, "be a finite number of at least 0", f"{value:g}")


def above_zero(option: str, value: float) -> None:
    """Raise MethodError unless `value` is finite and above 0."""
    _number(option, value)
    if not (math.isfinite(value) and value > 0):
        raise _refused(option, "be a finite number above 0", f"{value:g}")


def at_least(option: str, value: int, least: int) -> None:
    """Raise MethodError for a whole number that is too small."""
    if value < least:
        raise _refused(option, f"be at least {least}", str(value))


def one_of(option: str, value: str, choices: Collection[str]) -> None:
    """Raise MethodError unless `value` is among the choices."""
    if value not in choices:
        raise _refused(option, f"be one of {', '.join(choices)}", f"`{value}`")


def averages(option: str, value: PerModel) -> None:
    """Raise MethodError unless the values can be the weights of an average: none negative, not all 0."""
    each(option, value, at_least_zero)
    if not any(as_tuple(value)):
        raise _refused(option, "count for one model at least", "zeros alone")
