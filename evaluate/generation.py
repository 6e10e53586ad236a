"""What a model writes: greedily, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..data.batching import collate
from ..data.example import Example
from ..fusion.errors import ModelError
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
    stopping = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate(
            [prompts[place] for place in places],
            fill={"input_ids": tokenizer.pad_token_id},
            left=not model.is_encoder_decoder,
        )
        written = model.model.generate(
            **batch.inputs_on(model.device, model.model.dtype),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
            **stopping,
        )
        given = batch.inputs["input_ids"].shape[1] if "input_ids" in batch.inputs else 0
        # Some models of pictures hand out the answer alone.
        if not model.is_encoder_decoder and written.shape[1] > given:
            written = written[:, given:]
        for place, text in zip(places, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found[place] = cut_at(text, stop)
        advance(len(places))
    return found


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return the text up to where the first of `stop` begins; blank space before an answer does not end it."""
    body = text.lstrip()
    ends = [body.find(end) for end in stop if end in body]
    return body[: min(ends)] if ends else body
