"""CPU kernels: the same bits as the definitions that they stand in for, at the speed of memory.

`source` is what Numba compiles, imported on a machine's first use of a kernel; the modules here call the machine code.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arithmetic.tile import RawTile
from . import adadare, budget, dare, merge, ranks, saliency, task_arithmetic
from .native import TAKEN_FOR
from .stand_in import Signature, StandIn, signature_of

KERNELS: dict[Signature, list[StandIn]] = defaultdict(list)
for module in (adadare, budget, dare, merge, ranks, saliency, task_arithmetic):
    for found in module.STAND_INS:
        KERNELS[found.signature].append(found)


def kernel_for(
    function: Callable[..., Any], arguments: tuple[Any, ...], tile: RawTile, out: np.ndarray | None = None
) -> Callable[..., np.ndarray] | None:
    """Return the kernel that computes what `function` defines, or None where there is none for such a tile."""
    arrays = (tile.base, *tile.tuned) if out is None else (tile.base, *tile.tuned, out)
    if any(array.dtype not in TAKEN_FOR for array in arrays):
        return None
    known = KERNELS.get(signature_of(function, arguments), ())
    return next((found.kernel for found in known if found.takes(tile, *arguments)), None)
