"""Domain-incremental learning: the adapters one after another, their coefficients learned again at each experience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..fusion.checkpoint import Source
from ..fusion.errors import DataError
from ..fusion.progress import Progress, silent
from .buffer import BufferSample
from .coefficients import Coefficients
from .merged_model import MergedModel
from .training import BufferScore, Learning, learn, score


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What is known after one domain more.

    Attributes:
        domain: The new one.
        coefficients: Of this adapter and those before.
        scores: Of every domain so far.
    """

    domain: str
    coefficients: Coefficients
    scores: Mapping[str, BufferScore]

    @property
    def accuracy(self) -> float:
        """Mean over the domains so far."""
        return sum(found.accuracy for found in self.scores.values()) / len(self.scores)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "domain": self.domain,
            "coefficients": self.coefficients.as_json(),
            "accuracy": self.accuracy,
            "scores": {name: asdict(found) for name, found in self.scores.items()},
        }


def domains_of(samples: Sequence[BufferSample], count: int) -> list[str]:
    """Return the domains in the order in which they first come, one an adapter.

    Raises:
        DataError: A sample names none, or there are not as many as adapters.
    """
    if any(sample.domain is None for sample in samples):
        raise DataError("every row of the buffer needs a `domain` where adapters come one after another")
    found = list(dict.fromkeys(str(sample.domain) for sample in samples))
    if len(found) != count:
        raise DataError(f"the buffer has {len(found)} domains ({', '.join(found)}) for {count} adapters")
    return found


def learn_continually(
    merged: MergedModel,
    adapters: Sequence[Source],
    buffer: Sequence[BufferSample],
    learning: Learning,
    *,
    test: Sequence[BufferSample] | None = None,
    report: Progress = silent,
) -> list[Experience]:
    """Return an entry for each adapter in order: learned on the buffer of the domains so far, scored on their tests.

    Args:
        test: What is scored; the buffer itself where there is none.
    """
    domains = domains_of(buffer, len(adapters))
    known = []
    for number, domain in enumerate(domains, 1):
        seen = domains[:number]

        def told(done: int, total: int, what: str, number: int = number) -> None:
            report((number - 1) * total + done, len(domains) * total, what)

        learned = learn(merged, adapters[:number], [s for s in buffer if s.domain in seen], learning, report=told)
        scores = {
            name: score(merged, group)
            for name in seen
            if (group := [sample for sample in (test or buffer) if sample.domain == name])
        }
        if not scores:
            raise DataError(f"no sample to score is of the domain `{domain}`")
        known.append(Experience(domain=domain, coefficients=learned.coefficients, scores=scores))
    return known
