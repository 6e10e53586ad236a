"""Repair at the end of a training: a callback of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from transformers import TrainerCallback

from .api import fuse
from .fusion.arithmetic.two_sided import Protection
from .fusion.run.calibration import Calibration, PathLike

TUNED = "fine-tuned"  # in the trainer's output folder


@final
class RepairCallback(TrainerCallback):
    """Writes what was trained, and a repaired model beside it, when a training ends: as `sculpt repair` would.

        trainer = Trainer(model, args, …, callbacks=[sculpt.RepairCallback("base/", data="train.jsonl")])

    An adapter is written as one, and the repaired model is whole. Of several processes the first does it; a model whose
    weights are spread over processes (FSDP, ZeRO 3) is to be saved first and repaired by the command.

    Args:
        base: What was fine-tuned, as it was before.
        output: Of the repaired model. Default: `repaired` in the trainer's output folder.
        data: Samples of the task. Default: none; the fine-tuning deltas stand in for them.
        calibration: In place of `data`: how models are measured, and what the base is protected on.
        protection: How the base is protected.
        overwrite: Replace an earlier output of sculpt.
    """

    def __init__(
        self,
        base: PathLike,
        *,
        output: PathLike | None = None,
        data: PathLike | None = None,
        calibration: Calibration | None = None,
        protection: Protection | None = None,
        overwrite: bool = False,
    ) -> None:
        self.base, self.output = base, output
        self.calibration = (calibration or Calibration(data=data)).protecting()
        self.protection, self.overwrite = protection or Protection(), overwrite

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        """Write both models.

        Raises:
            SculptError: One sentence about what is wrong; what was trained is written all the same.
        """
        del control
        if not state.is_world_process_zero or model is None:
            return
        folder = Path(args.output_dir)
        model.save_pretrained(folder / TUNED)
        if processing_class is not None:
            processing_class.save_pretrained(folder / TUNED)
        fuse(
            self.base,
            folder / TUNED,
            output=self.output or folder / "repaired",
            calibration=self.calibration,
            protection=self.protection,
            overwrite=self.overwrite,
        )
