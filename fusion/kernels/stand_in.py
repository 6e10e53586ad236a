"""What a kernel stands in for, and which tiles it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

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
        kernel: Of a pass it is given (tile, *arguments), of a map (tile, out, *arguments); a device's takes and gives
            torch's arrays.
        takes: Whether it computes them with these (tile, *arguments).
    """

    signature: Signature
    kernel: Callable[..., Any]
    takes: Callable[..., bool] = one_model


class StandIns:
    """The kernels of one kind of processor."""

    def __init__(self, kernels: Iterable[StandIn], dtypes: Iterable[Any]) -> None:
        self._dtypes = frozenset(dtypes)
        self._by_signature: dict[Signature, list[StandIn]] = defaultdict(list)
        for kernel in kernels:
            self._by_signature[kernel.signature].append(kernel)

    def find(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], tile: RawTile, out: Any = None
    ) -> Callable[..., Any] | None:
        """Return the kernel that computes what `function` defines, or None where there is none for such a tile."""
        arrays = (tile.base, *tile.tuned) if out is None else (tile.base, *tile.tuned, out)
        if any(array.dtype not in self._dtypes for array in arrays):
            return None
        known = self._by_signature.get(signature_of(function, arguments), ())
        return next((found.kernel for found in known if found.takes(tile, *arguments)), None)
