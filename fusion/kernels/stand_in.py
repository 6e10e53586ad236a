"""What a kernel stands in for, and which tiles it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arithmetic.tile import RawTile
from ..transforms.chain import Kept
from ..transforms.merge import Merging

Signature = tuple[Any, ...]  # a function of a pass or map; of a chain's also the types of its settled transforms


def signature_of(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Signature:
    """Return by what a kernel is found, whatever method the pass or map is of."""
    return (function, *(type(found) for found in arguments if isinstance(found, Kept | Merging)))


def one_model(tile: RawTile, *_arguments: Any) -> bool:
    """Return whether there is one tuned model."""
    return len(tile.tuned) == 1


def any_models(_tile: RawTile, *_arguments: Any) -> bool:
    """Return True: any number of tuned models will do."""
    return True


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """A kernel for a definition.

    Attributes:
        signature: Of the passes or maps that it computes.
        kernel: Of a pass it is given (tile, *arguments), of a map (tile, out, *arguments).
        takes: Whether it computes them with these (tile, *arguments).
    """

    signature: Signature
    kernel: Callable[..., np.ndarray]
    takes: Callable[..., bool] = one_model
