"""Options that have one value for all models, or one for each."""

from __future__ import annotations

from ..errors import MethodError

PerModel = float | tuple[float, ...]


def as_tuple(value: PerModel) -> tuple[float, ...]:
    """Return the values, one or one for each model."""
    return value if isinstance(value, tuple) else (value,)


def spread(option: str, value: PerModel, num_models: int) -> tuple[float, ...]:
    """Return one value for each model.

    Raises:
        MethodError: Several values were given, and not as many as there are models.
    """
    values = as_tuple(value)
    if len(values) == 1:
        return values * num_models
    if len(values) != num_models:
        raise MethodError(f"{option} has {len(values)} values for {num_models} models")
    return values
