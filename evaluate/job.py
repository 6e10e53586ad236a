"""What every scorer is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..data.encoding import Encoder
from ..data.example import Example
from ..data.row import Row
from ..data.rows import Rows
from ..fusion.errors import DataError
from ..live.model import LiveModel
from ..predict.generation import generate
from ..predict.likelihood import Likelihood, likelihoods
from .suite import WritingTask

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a scorer found.

    Attributes:
        score: In [0, 100], more is better.
        figures: What else it measured.
        num_rows: Rows of the file that it scored.
        outcomes: Of each row, whether its answer is right; empty where answers are not right or wrong.
        luck: The mean of 1/(k − 1) over rows of k choices: how many answers are lucky for one that is wrong.
    """

    score: float
    num_rows: int
    figures: Mapping[str, float] = field(default_factory=dict)
    outcomes: tuple[bool, ...] = ()
    luck: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every scorer is given."""

    model: LiveModel
    rows: Rows
    encoder: Encoder
    batch_size: int
    max_length: int
    advance: Advance = lambda _rows: None

    def completed(self, row: Row, completion: str) -> list[Example]:
        """Return the examples of a prompt with what should follow it."""
        found = self.encoder.labelled(row.completed(completion)) if completion else []
        if not any(example.num_predicted for example in found):
            raise DataError(f"a completion of {row.what} is empty")
        return found

    def likelihoods(self, examples: Sequence[Example]) -> list[Likelihood]:
        """Return how likely the model finds what is to be predicted."""
        device = self.model.device
        return likelihoods(self.model.model, examples, device=device, batch_size=self.batch_size, advance=self.advance)

    def written(self, task: WritingTask, prompts: Sequence[Example]) -> list[str]:
        """Return what the model writes after each prompt."""
        return generate(
            self.model,
            prompts,
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            penalties=task.penalties,
            batch_size=self.batch_size,
            advance=self.advance,
        )
