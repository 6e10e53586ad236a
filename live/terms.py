"""What was summed for one tensor of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Sums and counts of one tensor: arrays that broadcast to it."""

    sums: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    gram: np.ndarray | None = None
