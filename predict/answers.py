"""What a model answers to questions: greedily, each once, kept in the cache folder from one run to the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, final

from ..data.example import Example
from ..data.sampling import digest_of
from ..fusion.cache import default_cache
from ..fusion.checkpoint.output.lines import LineFile, read_lines
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.digests import digest_of_facts
from ..fusion.launch import Launch
from ..live.model import LiveModel
from .generation import generate

logger = logging.getLogger(__name__)

MAX_TOKENS = 48
BATCH = 16
STREAMED_BATCH = 128  # each token that is written takes a pass over the weights, from the disk


@final
class Answers:
    """The answers of one model; a context manager, as the model is loaded for the first that is not known.

    A line of JSON an answer is added to a file of the cache as soon as it is there, so a run that is killed goes on.

    Args:
        model: All that tells the model from any other, and how it is run.
        load: Gives the model as it runs, which is left with this.
        at_once: How many questions are answered at once, where it is not what is best for many.
        processes: That share the answering, by batches, and ask for the same answers in the same order.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        load: Callable[[], AbstractContextManager[LiveModel]],
        at_once: int | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._load = load
        self._at_once = at_once
        self._processes = processes or Processes(Launch())
        self._live: LiveModel | None = None
        self._stack = ExitStack()
        facts = {**model, "tokens": MAX_TOKENS}
        file = default_cache() / "answers" / f"{digest_of_facts(facts)[:32]}.lines"
        entries: list[dict[str, Any]] = []
        self._lines: LineFile | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            entries = read_lines(file)
            if self._processes.is_first:  # of several that may have one cache
                self._lines = LineFile(file, entries)
                self._stack.callback(self._lines.close)
        except OSError as error:
            logger.warning("answers are not kept for later runs: cannot write `%s`: %s", file, error.strerror)
        own = {entry["prompt"]: entry["answer"] for entry in entries}
        # On other machines other answers may be kept: those of the first hold for all.
        every = self._processes.gather("known answers", own)
        self._known: dict[str, str] = {prompt: said for known in reversed(every) for prompt, said in known.items()}

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _model(self) -> LiveModel:
        if self._live is None:
            self._live = self._stack.enter_context(self._load())
        return self._live

    @property
    def _batch(self) -> int:
        return STREAMED_BATCH if self._model.streamed else self._at_once or BATCH

    @property
    def at_once(self) -> int:
        """How many questions are best asked together: a batch for each process."""
        return self._batch * self._processes.count

    def known(self, prompt: Example) -> str | None:
        """Return an answer that was given before; None where there is none."""
        return self._known.get(digest_of([prompt]))

    def to(self, prompts: Sequence[Example]) -> list[str]:
        """Return what the model answers, of at most `MAX_TOKENS` tokens."""
        digests = [digest_of([prompt]) for prompt in prompts]
        new = {digest: prompt for digest, prompt in zip(digests, prompts, strict=True) if digest not in self._known}
        own: dict[str, str] = {}
        for batch in self._batches(digests, set(new))[self._processes.rank :: self._processes.count]:
            written = generate(
                self._model, [new[d] for d in batch], max_new_tokens=MAX_TOKENS, stop=(), batch_size=len(batch)
            )
            own |= zip(batch, written, strict=True)
        if new:
            for told in self._processes.gather("answers", own):
                self._keep(told)
        return [self._known[digest] for digest in digests]

    def _batches(self, digests: Sequence[str], new: set[str]) -> list[list[str]]:
        """Return what is answered together: as one process goes through it, as what is beside moves the last bits."""
        found = []
        for at in range(0, len(digests) if new else 0, self._batch):
            found.append([digest for digest in dict.fromkeys(digests[at : at + self._batch]) if digest in new])
            new.difference_update(found[-1])
        return [batch for batch in found if batch]

    def _keep(self, answers: Mapping[str, str]) -> None:
        for digest, answer in answers.items():
            if digest not in self._known:
                self._known[digest] = answer
                if self._lines is not None:
                    self._lines.append({"prompt": digest, "answer": answer})
