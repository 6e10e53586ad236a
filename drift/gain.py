"""How much of what a fine-tune gained on its data a fused model keeps, by the loss of rows that were not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

from ..data.batching import collate
from ..data.encoding import Encoder
from ..data.example import Example
from ..data.rows import chosen, open_rows
from ..fusion.checkpoint import Source, open_checkpoint
from ..fusion.run.calibration import SampleRun
from ..predict.likelihood import of_logits
from .reader import HowToRun, Reader

ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The mean loss of a token, in nats, of the three models.

    Attributes:
        rows: How many rows it is of.
    """

    base: float
    tuned: float
    fused: float
    rows: int

    @property
    def kept(self) -> float | None:
        """The share of the gain that is left; None where nothing was gained."""
        gained = self.base - self.tuned
        return (self.base - self.fused) / gained if gained > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values, rounded to what a device or a number of threads does not change."""
        figures = {name: round(getattr(self, name), 4) for name in ("base", "tuned", "fused")}
        return {"kept": None if self.kept is None else round(self.kept, 4), **figures, "rows": self.rows}


def gain_kept(
    base: Source, tuned: Source, fused: Path, how: HowToRun, data: Path | str, drawn: SampleRun
) -> Gain | None:
    """Return what is kept; None where all rows were measured, or running text was.

    Args:
        data: What the fine-tune was measured on.
        drawn: How its samples were drawn: the rows that come last in that order are taken.

    Raises:
        ModelError: A model predicts no tokens.
        DataError: A row does not suit the model.
    """
    rows = open_rows(data, drawn.media, fields=drawn.fields)
    left = [] if rows.documents or rows.kinds else chosen(rows.count, rows.count, drawn.seed)[drawn.samples :][-ROWS:]
    if not left:
        return None
    examples: list[Example] = []
    losses = []
    for model in (base, tuned, open_checkpoint(fused, base)):
        with Reader(model, how) as reader:
            if not losses:
                encoder = Encoder(reader.folder, reader.model, max_length=drawn.max_length, options=drawn)
                found = [example for number in left for example in encoder.examples(rows.row(number))[:1]]
                examples = [example for example in found if example.num_predicted]
                if not examples:
                    return None
            losses.append(_loss(reader, examples))
    return Gain(base=losses[0], tuned=losses[1], fused=losses[2], rows=len(examples))


def _loss(reader: Reader, examples: Sequence[Example]) -> float:
    groups = reader.groups(examples)
    read = zip(groups, reader.logits(groups), strict=True)
    found = [one for group, logits in read for one in of_logits(logits, collate(group), group)]
    return -fsum(one.log_probability for one in found) / sum(one.num_tokens for one in found)
