"""Looking for the best of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def climb(grid: Sequence[float], start: float, value: Callable[[float], float]) -> float:
    """Return a strength whose neighbours on the grid are both worse; the best of all if there is one peak."""
    place = min(range(len(grid)), key=lambda k: abs(grid[k] - start))
    while True:
        near = [k for k in (place, place - 1, place + 1) if 0 <= k < len(grid)]
        best = max(near, key=lambda k: value(grid[k]))
        if best == place:
            return grid[place]
        place = best
