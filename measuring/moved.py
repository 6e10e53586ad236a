"""How far a fused model moved from its base, and what it kept of the fine-tune's gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..fusion.checkpoint import Source
from ..fusion.errors import SculptError
from ..fusion.progress import Progress
from ..fusion.run.calibration import GENERAL, Calibration


def comparison(
    base: Source,
    tuned: Sequence[Source],
    calibration: Calibration,
    general: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> Callable[[Path], Mapping[str, Any]]:
    """Return what says of a fused folder how far it moved from its base, and of one fine-tune that was measured on
    samples what is left of its gain on others of them; of what it cannot say, why not."""
    seen = [(one["seed"], dict(one["kind_samples"])) for one in general if one.get("data") == GENERAL]

    def compare(folder: Path) -> Mapping[str, Any]:
        from ..drift.gain import gain_kept
        from ..drift.movement import movement
        from ..drift.reader import HowToRun

        how = HowToRun(**{field.name: getattr(calibration, field.name) for field in fields(HowToRun)})
        try:
            moved = movement(
                base, folder, how, chats=calibration.protect_chats, seed=calibration.seed, measured=seen,
                progress=progress,
            ).as_json()  # fmt: skip
            own = calibration.of_tuned(len(tuned))
            if len(own) > 1 or own[0].hessian is not None or not isinstance(own[0].data, (str, Path)):
                return moved
            gain = gain_kept(base, tuned[0], folder, how, own[0].data, own[0]) if own[0].has_samples else None
            return moved if gain is None else {**moved, "gain": gain.as_json()}
        except SculptError as error:  # what was fused is whole, whatever cannot be said of it
            return {"why_not": error.message}

    return compare
