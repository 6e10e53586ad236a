"""LoRASculpt's masks in a transformers Trainer."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..fusion.errors import MethodError, ModelError
from .sculptor import Masking, Sculptor

logger = logging.getLogger(__name__)


class LoRASculptCallback(TrainerCallback, ExportableState):
    """Keeps A and B sparse from the end of the warm-up: see `Sculptor`.

    The masks are in the Trainer's own checkpoints, in `trainer_state.json`, and a resumed run takes them from there.
    `density` in the log is the fraction of non-zeros over all B·A, counted when the masks are chosen; it is fixed with
    them. Regularising is `add_term`'s part.

    Args:
        density: Fraction of A's and of B's entries that are kept, or (s_A, s_B).
        warmup_steps: Optimiser steps before that.
        connector: Modules without masks, by globs of their names or by the names' last part.

    Raises:
        MethodError: A density or the warm-up is out of range; when training begins, the warm-up would not end.
        ModelError: The model has no LoRA, or a checkpoint no masks.
    """

    def __init__(
        self,
        density: float | tuple[float, ...] = 0.1,
        warmup_steps: int = 100,
        connector: tuple[str, ...] = (),
    ) -> None:
        # What a Trainer restores from a checkpoint has been through JSON.
        density = tuple(density) if isinstance(density, (list, tuple)) else density
        self.masking = Masking(density=density, warmup_steps=warmup_steps, connector=tuple(connector))
        self.sculptor: Sculptor | None = None
        self._density: float | None = None

    def state(self) -> dict[str, Any]:
        """Return what the Trainer stores with its checkpoint."""
        masking = self.masking
        return {
            "args": {
                "density": masking.density,
                "warmup_steps": masking.warmup_steps,
                "connector": masking.connector,
            },
            "attributes": {"masks": {} if self.sculptor is None else self.sculptor.state_dict()},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the model, and take the masks of the checkpoint that training goes on from."""
        del args, control
        warmup = self.masking.warmup_steps
        if warmup >= max(state.max_steps, state.global_step):
            raise MethodError(
                f"the warm-up of {warmup} steps leaves none of the {state.max_steps} to train with masks",
                hint="lower `warmup_steps`, or train longer",
                options=["warmup_steps"],
            )
        self.sculptor = Sculptor(kwargs["model"], self.masking)
        stored = state.stateful_callbacks.get(type(self).__name__) or {}
        stored = stored[-1] if isinstance(stored, list) else stored
        masks = stored.get("attributes", {}).get("masks") or {}
        if state.global_step >= warmup and not masks:
            raise ModelError(
                f"training goes on from step {state.global_step}, and its checkpoint holds no masks",
                hint="it was trained without `LoRASculptCallback`, or with a longer warm-up",
            )
        self.sculptor.load_state_dict(masks)
        self.sculptor.apply()
        self._density = self.sculptor.density() if masks else None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what is dropped to zero."""
        del args, control, kwargs
        assert self.sculptor is not None  # training has begun
        self.sculptor.after_step(state.global_step + 1)
        if self.sculptor.masked and self._density is None:
            self._density = self.sculptor.density()
            logger.info("step %d: masks chosen, density of B·A %.4f", state.global_step + 1, self._density)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the density of B·A to what is logged."""
        del args, control
        logs = kwargs.get("logs")
        if self._density is not None and logs is not None and "loss" in logs:
            logs["density"] = self._density
            if state.log_history:  # written before callbacks are told
                state.log_history[-1]["density"] = self._density
