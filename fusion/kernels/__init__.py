"""CPU kernels: the same bits as the definitions in `fusion.methods`, at the speed of memory.

`source` is what Numba compiles, imported on a machine's first use of a kernel; the modules here call the machine code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arithmetic.budget import l1_sums
from ..arithmetic.ranks import digit_counts
from ..arithmetic.tile import RawTile
from ..methods import adadare as adadare_method
from ..methods import dare as dare_method
from ..methods import saliency as saliency_method
from ..methods import task_arithmetic as task_arithmetic_method
from ..methods import trim as trim_method
from . import adadare, budget, dare, merge, ranks, saliency, task_arithmetic
from .native import TAKEN_FOR

Function = Callable[..., Any]
Kernels = dict[Function, Callable[..., np.ndarray]]

# By the definition that a kernel stands in for. A pass takes (tile, *arguments), a map (tile, out, *arguments).
FOR_ONE_MODEL: Kernels = {
    l1_sums: budget.l1_sums,
    adadare_method.score_sums: adadare.score_sums,
    adadare_method.clipped_sums: adadare.clipped_sums,
    adadare_method.drop_and_rescale: adadare.drop_and_rescale,
    dare_method.drop_and_rescale: dare.drop_and_rescale,
    saliency_method.keep_salient: saliency.keep_salient,
    task_arithmetic_method.add_scaled: task_arithmetic.add_scaled,
}
FOR_ANY_NUMBER: Kernels = {
    digit_counts: ranks.digit_counts,
    dare_method.drop_and_merge: merge.drop_and_merge,
    task_arithmetic_method.add_weighted: merge.add_weighted,
    trim_method.trim_and_merge: merge.trim_and_merge,
}


def kernel_for(function: Function, arguments: tuple[Any, ...], tile: RawTile, out: np.ndarray | None = None):
    """Return the kernel that computes what `function` defines, or None where there is none for such a tile."""
    arrays = (tile.base, *tile.tuned) if out is None else (tile.base, *tile.tuned, out)
    if any(array.dtype not in TAKEN_FOR for array in arrays):
        return None
    if function is digit_counts and not ranks.counts(*arguments):
        return None
    if function is trim_method.trim_and_merge and any(cut.wide for limits in arguments[0] for cut in limits):
        return None
    if function is saliency_method.keep_salient and arguments[0].wide:
        return None
    found = FOR_ANY_NUMBER.get(function)
    return FOR_ONE_MODEL.get(function) if found is None and len(tile.tuned) == 1 else found
