"""The kernel of `fusion.budget`."""

from __future__ import annotations

from .blocks import SIZE, sum_block, zero_tail
from .elements import decoded, u64


def l1_sums(base, tuned, count, deltas, sizes, lanes, rows, num_blocks):
    """Put block sums of |δ| and of |base| into two rows."""
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        for i in range(size):
            b = decoded(base[at + i])
            deltas[i] = abs(decoded(tuned[at + i]) - b)
            sizes[i] = abs(b)
        zero_tail(deltas, size)
        zero_tail(sizes, size)
        block = at // SIZE
        rows[block] = sum_block(deltas, lanes)
        rows[num_blocks + block] = sum_block(sizes, lanes)
