"""A model that is run block by block, with all that this takes: for whoever measures it, and for whoever reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...fusion.checkpoint import Source
from ...live.devices import activation_budgets
from ...live.skeleton import Skeleton
from ...live.units import Unit, find_units
from ..measure.recorder import Recorder
from ..measure.statistics import ParameterStatistics
from .activations import Activations
from .forward import Forward
from .journal import Journal
from .weights import Weights


def _nothing(_name: str, _shape: tuple[int, ...]) -> None:
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """A model without weights, and what brings them as batches pass.

    Attributes:
        activations: What batches hold between blocks, some of it on the disk: to be left as a context manager.
    """

    model: Any
    units: Sequence[Unit]
    recorder: Recorder
    activations: Activations
    weights: Weights
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        checkpoint: Source,
        skeleton: Skeleton,
        recorder: Recorder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        memory: int | None = None,
        statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None] = _nothing,
    ) -> Streamed:
        """Return a model, ready to be run.

        Args:
            memory: What activations may take; None is half of what is free.
            statistics_of: Gives what is to be summed for a parameter.
        """
        units = find_units(skeleton.model)
        budget, host = activation_budgets(memory, device)
        activations = Activations(budget, host_bytes=host)
        activations.is_weight = recorder.is_watched
        recorder.made, recorder.restore = activations.made, activations.restore
        weights = Weights(checkpoint, skeleton, units, recorder, device=device, statistics_of=statistics_of)
        return cls(
            model=skeleton.model,
            units=units,
            recorder=recorder,
            activations=activations,
            weights=weights,
            device=device,
            dtype=dtype,
        )

    def forward(self, journal: Journal | None = None) -> Forward:
        """Return what runs batches through it."""
        return Forward(
            self.model,
            self.units,
            self.weights,
            self.recorder,
            self.activations,
            self.device,
            self.dtype,
            journal,
        )
