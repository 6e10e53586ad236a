"""What a model predicts where examples want it, run block by block: memory is a block, not the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..data.batching import Batch, collate
from ..data.example import PADDED, Example
from ..fusion.checkpoint import Source
from ..fusion.errors import ModelError
from ..hessian.forward.streamed import Streamed
from ..hessian.measure.recorder import Recorder
from ..hessian.measure.rules import TABLE
from ..live.devices import compute_dtype, pick_device
from ..live.model import LiveModel
from ..live.skeleton import build
from ..predict.general import load_to_answer
from ..predict.likelihood import batches

AT_ONCE = 8
LOGIT_BYTES = 1 << 26  # of the float32 logits of one batch, unless one example alone has more


@dataclass(frozen=True, kw_only=True)
class HowToRun:
    """How models are loaded and run.

    Attributes:
        device, dtype, auto_class, trust_remote_code: As for a calibration.
    """

    device: str = "auto"
    dtype: str = "auto"
    auto_class: str | None = None
    trust_remote_code: bool = False

    def load(self, checkpoint: Source) -> LiveModel:
        """Return a model that is to write, whole."""
        return load_to_answer(
            checkpoint,
            device=self.device,
            dtype=self.dtype,
            auto_class=self.auto_class,
            trust_remote_code=self.trust_remote_code,
        )


@final
class Reader:
    """A model that reads examples; a context manager, as what batches hold between blocks may be on the disk.

    Attributes:
        model: As transformers makes it; its weights are there only while they are used.
        folder: Of configuration and tokenizer.
        hidden: What the output layer was given of each batch, (n, width) each, until somebody takes it.
    """

    def __init__(self, checkpoint: Source, how: HowToRun) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(how.device)
        self.dtype = compute_dtype(how.dtype, checkpoint, self.device)
        skeleton = build(
            checkpoint,
            auto_class=how.auto_class,
            dtype=self.dtype,
            device=self.device,
            seed=0,
            trust_remote_code=how.trust_remote_code,
        )
        self.model, self.folder = skeleton.model, skeleton.folder
        self.hidden: dict[int, Tensor] = {}
        self._streamed = Streamed.of(
            checkpoint, skeleton, Recorder(TABLE), device=self.device, dtype=self.dtype
        )  # fmt: skip

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._streamed.activations.__exit__()

    @property
    def num_units(self) -> int:
        """How many blocks, and modules outside of them, there are to pass."""
        return len(self._streamed.units)

    @property
    def head(self) -> Any:
        """The output layer.

        Raises:
            ModelError: There is none.
        """
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if head is None:
            raise ModelError(f"`{type(self.model).__name__}` predicts no tokens")
        return head

    def groups(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Return the examples by what is read at once: texts of like length; pictures of different sizes make no batch.

        Raises:
            ModelError: The model predicts no tokens.
        """
        texts = [example for example in examples if set(example.inputs) <= set(PADDED)]
        found = [
            [texts[place] for place in places]
            for places in batches(self.model, texts, AT_ONCE, logit_bytes=LOGIT_BYTES)
        ]
        return found + [[example] for example in examples if not set(example.inputs) <= set(PADDED)]

    def logits(
        self, groups: Sequence[Sequence[Example]], *, advance: Callable[[], None] = lambda: None
    ) -> Iterator[Tensor]:
        """Yield the logits (n, vocabulary) of what is to be predicted of each group, float32 on the CPU.

        Args:
            advance: Called as the examples pass the next block.

        Raises:
            ModelError: The model predicts no tokens, or fails on an example.
        """
        read = [collate(group) for group in groups]
        places = [batch.wanted.where for batch in read]
        forward = self._streamed.forward()
        forward.before = lambda _unit: advance()

        def select(_module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if forward.running is None:  # asked by somebody else, between batches
                return arguments
            chosen = arguments[0][places[forward.running].to(arguments[0].device)]
            self.hidden[forward.running] = chosen
            return (chosen, *arguments[1:])

        hook = self.head.register_forward_pre_hook(select)
        try:
            for output in forward.outputs([_without_marks(batch) for batch in read]):
                yield output.logits.float().to("cpu")
        finally:
            hook.remove()

    @torch.no_grad()
    def logits_of(self, hidden: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield what the output layer makes of what it was once given, as `logits` yields it."""
        unit = next(unit for unit in self._streamed.units if unit.module is self.head)
        self._streamed.weights.load(unit.parameters)
        for given in hidden:
            yield self.head(given.to(self.device, self.dtype)).float().to("cpu")


def _without_marks(batch: Batch) -> Batch:
    """Return the inputs of a batch alone: every token is read, and none is summed."""
    return Batch(inputs=batch.inputs, masks=(), num_samples=batch.num_samples, what=batch.what)
