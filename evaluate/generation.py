"""What a model writes: greedily, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.batching import collate
from ..data.example import Example
from ..fusion.errors import ModelError
from ..live.failures import plain_failures
from ..live.model import LiveModel


@torch.inference_mode()
def generate(
    model: LiveModel,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    batch_size: int,
    advance: Callable[[int], None] = lambda _rows: None,
) -> list[str]:
    """Return what follows each prompt, cut where the first of `stop` begins, in the order of the prompts.

    Raises:
        ModelError: The model does not generate.
    """
    if not model.can_generate:
        raise ModelError(f"`{type(model.model).__name__}` does not generate text", hint="use another scorer")
    order = sorted(range(len(prompts)), key=lambda k: (prompts[k].length, k))
    found = [""] * len(prompts)
    tokenizer = model.tokenizer
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate(
            [prompts[place] for place in places],
            fill={"input_ids": tokenizer.pad_token_id},
            left=not model.is_encoder_decoder,
        )
        with plain_failures(model.model, "a prompt"):
            written = model.model.generate(
                **batch.inputs_on(model.device, model.model.dtype),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[Stopped(tokenizer, stop)] if stop else None,
            )
        given = batch.inputs["input_ids"].shape[1] if "input_ids" in batch.inputs else 0
        # Some models of pictures hand out the answer alone.
        if not model.is_encoder_decoder and written.shape[1] > given:
            written = written[:, given:]
        for place, text in zip(places, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found[place] = cut_at(text, stop)
        advance(len(places))
    return found


class Stopped:
    """Says after each token which rows hold one of `stop`; as `cut_at` cuts them, by their text.

    transformers' own criterion looks for tokens that could make up a string, which not every tokenizer has.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._start: int | None = None

    def __call__(self, tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Return for each row whether it has come to its end; the first call is after the first token."""
        if self._start is None:
            self._start = tokens.shape[1] - 1
        texts = self._tokenizer.batch_decode(tokens[:, self._start :], skip_special_tokens=True)
        ended = [any(end in text.lstrip() for end in self._stop) for text in texts]
        return torch.tensor(ended, device=tokens.device)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return the text up to where the first of `stop` begins; blank space before an answer does not end it."""
    body = text.lstrip()
    ends = [body.find(end) for end in stop if end in body]
    return body[: min(ends)] if ends else body
