"""`learn_weights`: how strongly each adapter goes into a merge, learned from a few labelled samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.encoding import Encoder
from ..fusion.checkpoint import Asked, open_checkpoint
from ..fusion.errors import MethodError
from ..fusion.methods import TaskArithmetic
from ..fusion.progress import Progress, silent, watched
from .buffer import draw_buffer, read_buffer
from .continual import Experience, learn_continually
from .merged_model import MergedModel
from .parts import LinearMerge
from .training import Learning, learn, score

MAX_LENGTH = 512  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class LearnedWeights:
    """What was learned, for each seed.

    Attributes:
        runs: Of each seed, what is known after each domain; of all samples at once, one domain `all`.
        losses: Of each seed, the loss of the buffer before each step; empty where domains come one after another.
    """

    seeds: tuple[int, ...]
    runs: tuple[tuple[Experience, ...], ...]
    losses: tuple[tuple[float, ...], ...] = ()

    @property
    def alpha(self) -> tuple[float, ...]:
        """The weight of each adapter, in their order, of the first seed."""
        return self.runs[0][-1].coefficients.alpha

    @property
    def b(self) -> float:
        """The strength that they share, of the first seed."""
        return self.runs[0][-1].coefficients.b

    def __repr__(self) -> str:
        return f"LearnedWeights({', '.join(f'{weight:.3f}' for weight in self.alpha)}; b {self.b:.3f})"

    def as_json(self) -> dict[str, Any]:
        """Return the first run's figures, and those of all seeds where there are several."""
        every = [{"seed": seed, **self._figures(place)} for place, seed in enumerate(self.seeds)]
        return {**self._figures(0), **({"seeds": every} if len(self.runs) > 1 else {})}

    def _figures(self, place: int) -> dict[str, Any]:
        known = self.runs[place]
        if not self.losses:
            figures: dict[str, Any] = {"experiences": [experience.as_json() for experience in known]}
        else:
            scored = known[0].scores["all"]
            figures = {"losses": list(self.losses[place]), "loss": scored.loss, "accuracy": scored.accuracy}
        return {"coefficients": known[-1].coefficients.as_json(), **figures}


@watched
def learn_weights(
    base: Asked,
    adapters: Sequence[Asked],
    *,
    buffer: Path | str | None = None,
    buffer_from: Path | str | None = None,
    per_class: int = 1,
    merge: LinearMerge | None = None,
    learning: Learning | None = None,
    seeds: int = 1,
    continual: bool = False,
    test: Path | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
) -> LearnedWeights:
    """Return weights for merging adapters, learned so that the merged model does well on a few labelled samples.

    Args:
        buffer: The samples: `prompt` and `completion`, `text`, `messages`, or `text` or `image` and `label`; with
            `domain` where adapters come one after another.
        buffer_from: Such data of any size, in place of it: `per_class` samples of each class of each domain are drawn.
        merge: What the weights are for. Default: task arithmetic.
        learning: Steps, learning rate, and the most that the shared strength may be.
        seeds: How often the buffer and what is random are drawn, from the merge's seed on.
        continual: Take the adapters one after another, and score every domain so far after each.
        test: Samples to score. Default: the buffer.
        device, dtype: Of the model while it learns.

    Raises:
        MethodError: There is no buffer, or there are two.
        DataError: Samples cannot be read, or have no label.
    """
    data = buffer or buffer_from
    if data is None or (buffer is not None and buffer_from is not None):
        raise MethodError(
            "learning weights takes `buffer`, a few labelled samples, or `buffer_from`, to draw some from",
            options=["buffer", "buffer_from"],
        )
    if buffer is not None and per_class != 1:
        raise MethodError(
            "`per_class` has no effect on a `buffer` that is given; `buffer_from` draws one",
            options=["per_class", "buffer", "buffer_from"],
        )
    merge, learning, data = merge or LinearMerge(method=TaskArithmetic()), learning or Learning(), Path(data)
    opened = open_checkpoint(base)
    found = [open_checkpoint(adapter, opened) for adapter in adapters]
    merged = MergedModel(opened, merge, device=device, dtype=dtype)
    classifies = merged.model.get_output_embeddings() is None
    encoder = Encoder(opened.folder or opened.ref.path, merged.model, max_length=MAX_LENGTH)
    tested = read_buffer(Path(test), encoder, classifies=classifies) if test is not None else None
    runs: list[tuple[Experience, ...]] = []
    losses: list[tuple[float, ...]] = []
    tried = range(merge.seed, merge.seed + max(1, seeds))
    for place, seed in enumerate(tried):

        def told(done: int, total: int, what: str, place: int = place) -> None:
            progress(place * total + done, len(tried) * total, what)

        drawn = draw_buffer(data, per_class, seed) if buffer_from else None
        samples = read_buffer(data, encoder, classifies=classifies, numbers=drawn)
        merged.merge = replace(merge, seed=seed)
        if continual:
            runs.append(tuple(learn_continually(merged, found, samples, learning, test=tested, report=told)))
            continue
        outcome = learn(merged, found, samples, learning, report=told)
        losses.append(tuple(outcome.losses))
        scored = {"all": score(merged, tested or samples)}
        runs.append((Experience(domain="all", coefficients=outcome.coefficients, scores=scored),))
    return LearnedWeights(seeds=tuple(tried), runs=tuple(runs), losses=tuple(losses))
