"""Where the curvature of a fuse comes from: files, or models that are measured in step with it."""

from .forecast import Expected, expected
from .moved import comparison
from .sources import Statistics, statistics, with_found

__all__ = ["Expected", "Statistics", "comparison", "expected", "statistics", "with_found"]
