"""Settings that differ over tensors: by a filter on their names, by a gradient over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..names import selects

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Values that are spread evenly over the layers; numbers are interpolated in between."""

    values: tuple[Scalar, ...]

    def at(self, t: float) -> Scalar:
        """Return the value at `t` in [0, 1]."""
        scaled = t * (len(self.values) - 1)
        low = int(scaled)
        first, second = self.values[low], self.values[min(low + 1, len(self.values) - 1)]
        # What is not a number at all may come from a file, too: the method's option has its own to say about it.
        if isinstance(first, bool) or not isinstance(first, (int, float)):
            return first
        if isinstance(second, bool) or not isinstance(second, (int, float)):
            return first
        part = scaled - low
        return (1 - part) * first + part * second


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting for some tensors.

    Attributes:
        contains: Text that is in the name of the tensor; None matches all. mergekit's filters.
        globs: Patterns of which one must match the whole name; none of them matches all. Our own.
    """

    value: Setting
    contains: str | None = None
    globs: tuple[str, ...] = ()

    def matches(self, name: str) -> bool:
        """Return whether the case is for a tensor."""
        return (self.contains is None or self.contains in name) and (not self.globs or selects(self.globs, name))


Setting = Scalar | Gradient | tuple[Case, ...] | tuple[float, ...]
OptionSettings = Mapping[str, Setting]


def evaluate(setting: Setting, name: str, t: float) -> Any:
    """Return the value for a tensor at `t` of the way through the layers; None where no case is for it."""
    if isinstance(setting, Gradient):
        return setting.at(t)
    if isinstance(setting, tuple) and setting and isinstance(setting[0], Case):
        for case in setting:
            assert isinstance(case, Case)
            if case.matches(name):
                return evaluate(case.value, name, t)
        return None
    return setting


def first_of(settings: Iterable[OptionSettings], option: str, name: str, t: float) -> Any:
    """Return the value that the first of the settings has for a tensor, or None."""
    for found in settings:
        if option in found:
            value = evaluate(found[option], name, t)
            if value is not None:
                return value
    return None


def told(setting: Setting, convert: Callable[[Any], Any]) -> Any:
    """Return a setting as the recipe has it, in plain values for the manifest.

    Args:
        convert: Makes the method's option of the recipe's value.
    """
    if isinstance(setting, Gradient):
        return {"gradient": [convert(value) for value in setting.values]}
    if isinstance(setting, tuple) and setting and isinstance(setting[0], Case):
        cases = [case for case in setting if isinstance(case, Case)]
        if len(cases) == 1 and cases[0].contains is None and not cases[0].globs:
            return told(cases[0].value, convert)
        return [
            {"match": list(case.globs) or case.contains or "*", "value": told(case.value, convert)} for case in cases
        ]
    return convert(setting)
