"""How curvature is measured: Σx² of every linear parameter of a tuned model, over calibration data."""

from .calibration import CalibrationOptions, calibrate, iter_calibrate
from .store.diagonal import DiagonalHessian, Provenance

__all__ = ["CalibrationOptions", "DiagonalHessian", "Provenance", "calibrate", "iter_calibrate"]
