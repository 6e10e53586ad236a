"""How two scores become one: the Avg and the H-score of the AdaDARE-γ paper."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..fusion.errors import DataError


def average(general: Sequence[float], target: Sequence[float]) -> float:
    """Return Avg, the mean score over all tasks (eq. 14).

    Every task counts once, so four general tasks outweigh one target task.

    Args:
        general: One score for each task of the pre-trained model, P in the paper.
        target: One score for each task that the model was fine-tuned on, T in the paper.

    Raises:
        DataError: One of them is empty.
    """
    _refuse_empty(general, target)
    return fmean([*general, *target])


def source_target_average(general: Sequence[float], target: Sequence[float]) -> float:
    """Return the Avg of LoRASculpt, the mean of the two sides' means: a side counts once, not a task."""
    _refuse_empty(general, target)
    return (fmean(general) + fmean(target)) / 2


def h_score(general: Sequence[float], target: Sequence[float]) -> float:
    """Return the harmonic mean of the mean general and the mean target score (eq. 15).

    It is low when either side is low, and 0 when either is 0.
    """
    _refuse_empty(general, target)
    general_mean, target_mean = fmean(general), fmean(target)
    if general_mean == 0 or target_mean == 0:
        return 0.0
    return 2 * general_mean * target_mean / (general_mean + target_mean)


def _refuse_empty(general: Sequence[float], target: Sequence[float]) -> None:
    if not general or not target:
        raise DataError(f"a mean needs scores on both sides, got {len(general)} general and {len(target)} target")
