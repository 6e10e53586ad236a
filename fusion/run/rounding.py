"""How floats become codes while an output is written: by chance, or by what the inputs of a tensor have in common."""

from __future__ import annotations

import threading
from typing import Any, final

import numpy as np

from ..arithmetic.curvature import Curvature, Curvatures
from ..arithmetic.inverse_factor import inverse_factor
from ..arithmetic.random import SEGMENT, random_words, tensor_key

STREAM = -1  # of draws; those of the models count from 0


def uniforms(seed: int, name: str, start: int, stop: int) -> np.ndarray:
    """Return numbers in [0, 1) for elements `start … stop − 1` of a tensor, float32, multiples of 2⁻²⁴."""
    pieces = []
    while start < stop:
        segment = start // SEGMENT
        end = min(stop, (segment + 1) * SEGMENT)
        words = random_words(
            np.arange(start, end, dtype=np.int64), tensor_key(seed, name, segment=segment, stream=STREAM)
        )
        pieces.append((words >> 8).astype(np.float32) * np.float32(2**-24))
        start = end
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@final
class InputFactors:
    """The factor of the inverse Hessian of each tensor's inputs, made when first asked for, kept until it is done."""

    def __init__(self) -> None:
        self._curvatures: dict[str, Curvatures] = {}
        self._made: dict[tuple[str, int], np.ndarray] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def measured(self, name: str, curvatures: Curvatures) -> None:
        """Take what was measured of a tensor in each model."""
        with self._lock:
            self._curvatures[name] = curvatures

    def of(self, name: str, number: int) -> np.ndarray | None:
        """Return U with UᵀU = H⁻¹, float32, of one of the stacked matrices; None where no full matrix is known.

        H is of the mean over all models of what their inputs gave: of the general samples and of the target's.
        """
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            found = [known for known in self._curvatures.get(name, ()) if known is not None and known.gram is not None]
            if not found:
                return None
            stacked = any(known.gram is not None and known.gram.ndim == 3 for known in found)
            key = name, number if stacked else 0
            if key not in self._made:
                total = sum(_mean(known, key[1]) for known in found)
                factor = inverse_factor(name, 2 * np.asarray(total) + 1e-9 * np.eye(len(np.asarray(total))))
                self._made[key] = factor.astype(np.float32)
            return self._made[key]

    def forget(self, name: str) -> None:
        """Let go of what was known of a tensor."""
        with self._lock:
            self._curvatures.pop(name, None)
            self._locks.pop(name, None)
            for key in [key for key in self._made if key[0] == name]:
                del self._made[key]


def _mean(curvature: Curvature, number: int) -> Any:
    gram: Any = curvature.gram
    return (gram[number] if gram.ndim == 3 else gram).astype(np.float64) / max(1, curvature.num_tokens)
