"""A term added to the loss of a transformers Trainer, of any subclass; its parts and its cost go to the log."""

from __future__ import annotations

import time
from typing import Any, final

import torch
from torch import Tensor

from .terms import Term


def add_term(trainer: Any, term: Term) -> None:
    """Let a Trainer minimise `task + term`, and log `loss_task`, the parts of the term, and what it cost.

    The term depends on no batch, so it is computed once an optimiser step, with the last of its batches, whatever the
    gradient accumulation. Evaluation is left alone: its loss is the task's. In the log, means since the last: `loss` is
    the sum, `loss_task` and the parts add up to it, `term_seconds` is the time of the term a step and `term_share`
    its part of all time.
    """
    _Added(trainer, term)


@final
class _Added:
    """What stands between a Trainer and its own `compute_loss` and `log`."""

    def __init__(self, trainer: Any, term: Term) -> None:
        self._trainer, self._term = trainer, term
        self._task_loss, self._log = trainer.compute_loss, trainer.log
        self._sums: dict[str, Tensor] = {}
        self._restart()
        trainer.compute_loss, trainer.log = self.compute_loss, self.log

    def _restart(self) -> None:
        self._sums.clear()
        self._steps, self._seconds, self._since = 0, 0.0, time.monotonic()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **options: Any
    ) -> Any:
        """Return the task's loss, in training with the term."""
        found = self._task_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **options
        )
        if not model.training or not self._trainer.accelerator.sync_gradients:
            return found
        start = time.monotonic()
        total = self._total(model)
        self._seconds += time.monotonic() - start
        self._steps += 1
        # The Trainer divides a loss by the number of batches of a step, unless the model did so by its tokens.
        extra = total if self._is_scaled(num_items_in_batch) else total * self._batches()
        if return_outputs:
            return found[0] + extra, found[1]
        return found + extra

    def _total(self, model: Any) -> Tensor:
        total = torch.zeros((), device=self._trainer.args.device)
        for name, part in self._term(model).items():
            self._sums[name] = self._sums.get(name, 0) + part.detach()
            total = total + part
        return total

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        trainer = self._trainer
        known = getattr(trainer, "loss_is_scaled_for_ga", None)
        if known is not None:
            return known
        counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(counted or trainer.compute_loss_func is not None)

    def _batches(self) -> int:
        return getattr(self._trainer, "current_gradient_accumulation_steps", 1)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log with the parts of the loss."""
        if self._steps and "loss" in logs:
            means = {name: float(value) / self._steps for name, value in self._sums.items()}
            spent = time.monotonic() - self._since
            logs["loss_task"] = logs["loss"] - sum(means.values())
            logs |= means
            logs |= {"term_seconds": self._seconds / self._steps, "term_share": self._seconds / max(spent, 1e-9)}
            self._restart()
        self._log(logs, *arguments, **options)
