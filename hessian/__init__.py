"""How curvature is measured: Σx² of every linear parameter of a tuned model, over calibration data."""

from .calibration import calibrate
from .options import CalibrationOptions
from .store.diagonal import DiagonalHessian
from .store.provenance import Provenance

__all__ = ["CalibrationOptions", "DiagonalHessian", "Provenance", "calibrate"]
