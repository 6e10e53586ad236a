"""Which option of a method is its strength, which its sparsity; and grids of both as they are typed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ..fusion.errors import MethodError, did_you_mean
from ..fusion.methods import METHODS, AdaDare, Method
from ..fusion.methods.named import method_named

MAX_GRID = 1000


@dataclass(frozen=True, kw_only=True)
class Family:
    """A method whose strength or sparsity can be swept: everything but these is set.

    Attributes:
        text: As it was typed, `adadare:allocation=exact`.
    """

    text: str
    method: Method

    @classmethod
    def parse(cls, text: str) -> Family:
        """Return the family of `dare` or `adadare:allocation=exact,scope=block`.

        Raises:
            MethodError: No such method or option, or a method of one model that has nothing to sweep.
        """
        name = text.partition(":")[0].strip()
        known = [known for known, found in METHODS.items() if _can_be_swept(found)]
        if name not in METHODS:
            raise MethodError(f"no method is called `{name}`", hint=did_you_mean(name, known))
        if name not in known:
            raise MethodError(
                f"`{name}` has neither strength nor sparsity to sweep", hint=f"those that have: {', '.join(known)}"
            )
        return cls(text=text, method=method_named(text))

    @property
    def takes_strength(self) -> bool:
        """Whether the method has a strength: Model Tailor has a sparsity alone."""
        return strength_field(type(self.method)) is not None

    @property
    def takes_sparsity(self) -> bool:
        """Whether the method drops a fraction that can be chosen."""
        return _sparsity_field(type(self.method)) is not None

    def at(self, strength: float, sparsity: float | None = None) -> Method:
        """Return the method with a strength, and a sparsity where it takes one."""
        own = strength_field(type(self.method))
        values: dict[str, Any] = {} if own is None else {own: strength}
        field = _sparsity_field(type(self.method))
        if sparsity is not None and field is not None:
            values[field] = sparsity if field == "sparsity" else float(1 - Decimal(str(sparsity)))
        return dataclasses.replace(self.method, **values)


def strength_field(method: type[Method]) -> str | None:
    """Return the option that is a method's strength, or None."""
    fields = {field.name for field in dataclasses.fields(method)}
    if issubclass(method, AdaDare):
        return "gamma"
    return "scale" if "scale" in fields and method.min_models <= 1 else None


def _can_be_swept(method: type[Method]) -> bool:
    alone = method.min_models <= 1 and method.max_models != 0
    return method.protects or strength_field(method) is not None or (alone and _sparsity_field(method) is not None)


def _sparsity_field(method: type[Method]) -> str | None:
    fields = {field.name for field in dataclasses.fields(method)}
    return next((name for name in ("sparsity", "density") if name in fields), None)


def parse_grid(text: str) -> tuple[float, ...]:
    """Return the numbers of `0.3:1.0:0.1`, both ends included, or of `0.5` and `0.3,0.5,0.7`.

    Raises:
        MethodError: It reads otherwise, or has too many numbers.
    """
    try:
        if ":" not in text:
            return tuple(float(Decimal(part.strip())) for part in text.split(","))
        start, stop, step = (Decimal(part.strip()) for part in text.split(":"))
    except (InvalidOperation, ValueError) as error:
        raise MethodError(f"`{text}` is not a grid", hint="0.3:1.0:0.1 and 0.3,0.5,0.7 are") from error
    if step <= 0 or stop < start or (stop - start) / step >= MAX_GRID:
        raise MethodError(f"`{text}` is not a grid", hint="start:stop:step with start <= stop and a step above 0")
    return tuple(float(start + step * k) for k in range(int((stop - start) / step) + 1))
