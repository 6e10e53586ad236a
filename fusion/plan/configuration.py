"""What the output's `config.json` says: what the chosen side's says, brought into line with the planned weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .plan import Plan

Reshape = Callable[[Mapping[str, Any]], dict[str, Any]]
DTYPE_KEYS = ("dtype", "torch_dtype")


def configuration(plan: Plan, dtype: str | None, reshape: Reshape = dict) -> dict[str, Any] | None:
    """Return the content of the output's `config.json`, or None where the chosen side has none.

    Args:
        dtype: torch name of the dtype that all floats are cast to, or None.
        reshape: Makes the output's configuration of the copied one, where layers were moved.
    """
    copied = plan.config_from.config
    if copied is None:
        return None
    config = reshape(copied)
    return config if dtype is None else _with_dtype(config, dtype)


def _with_dtype(content: Any, dtype: str) -> Any:
    """Name a dtype wherever a configuration names one: loaders go by it."""
    if isinstance(content, Mapping):
        return {k: dtype if k in DTYPE_KEYS else _with_dtype(v, dtype) for k, v in content.items()}
    return content
