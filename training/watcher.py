"""Callbacks that watch a Trainer: progress, and losses that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..fusion.errors import ModelError
from ..fusion.progress import Progress
from .work import WHOLE


class EachEpoch(TrainerCallback):
    """Calls a function with the number of each epoch, from 1, at its end."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self._function = function

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call it."""
        del args, control, kwargs
        self._function(math.ceil(round(state.epoch, 3)))


class Watcher(TrainerCallback):
    """Tells how training goes, stops it where it has lost its way, and marks checkpoints that are whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown = ""
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where training begins."""
        del args, control, kwargs
        self.first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report a step."""
        del args, control, kwargs
        self._progress(state.global_step, state.max_steps, self._shown)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the loss for the next report.

        Raises:
            ModelError: It is not finite.
        """
        del args, control
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ModelError(
                f"the loss is {logs['loss']} at step {state.global_step}",
                hint="lower `learning_rate`",
                options=["learning_rate"],
            )
        self._shown = " ".join(
            f"{name} {logs[key]:.3g}"
            for name, key in (("loss", "loss"), ("cmr", "cmr"), ("con", "connector"), ("BA", "density"))
            if key in logs
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark a checkpoint as whole."""
        del control, kwargs
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()
