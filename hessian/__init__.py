"""How curvature is measured: Σx² of every linear parameter of a tuned model, over calibration data.

Nothing is imported until a name is used: the command line reads the options at its start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import calibrate
    from .options import CalibrationOptions
    from .store.diagonal import DiagonalHessian
    from .store.provenance import Provenance

_PLACES = {
    "CalibrationOptions": "options",
    "DiagonalHessian": "store.diagonal",
    "Provenance": "store.provenance",
    "calibrate": "calibration",
}

__all__ = ["CalibrationOptions", "DiagonalHessian", "Provenance", "calibrate"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sculpt.hessian' has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
