"""What a model writes: greedily, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.batching import Batch, collate
from ..data.example import Example
from ..fusion.errors import ModelError
from ..live.failures import plain_failures
from ..live.generation import greedy
from ..live.model import LiveModel

STEPS = 4  # tokens written by which it is found out whether a model minds padding
MINDS = 1e-3  # of the largest logit; a hundred times what rounding moves in float32
MINDS_COARSE = 5e-2  # the same where numbers have eight bits


@torch.inference_mode()
def generate(
    model: LiveModel,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    batch_size: int,
    penalties: bool = False,
    advance: Callable[[int], None] = lambda _rows: None,
) -> list[str]:
    """Return what follows each prompt, cut where the first of `stop` begins, in the order of the prompts.

    Args:
        penalties: Decode with what the model's generation_config.json asks for besides sampling, such as a
            `repetition_penalty`.

    Raises:
        ModelError: The model does not generate.
    """
    if not model.can_generate:
        raise ModelError(f"`{type(model.model).__name__}` does not generate text", hint="use another scorer")
    found = [""] * len(prompts)
    tokenizer = model.tokenizer
    with greedy(model.model, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, penalties=penalties):
        for places in _batches(model, prompts, batch_size):
            batch = _padded(model, [prompts[place] for place in places])
            length = batch.inputs["input_ids"].shape[1] if "input_ids" in batch.inputs else 0
            ended = _Ended(tokenizer, stop, 0 if model.is_encoder_decoder else length)
            with plain_failures(model.model, "a prompt"):
                written = model.model.generate(
                    **batch.inputs_on(model.device, model.model.dtype), stopping_criteria=[ended] if stop else None
                )
            # Some models of pictures hand out the answer alone.
            if not model.is_encoder_decoder and written.shape[1] > length:
                written = written[:, length:]
            for place, text in zip(places, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                found[place] = cut_at(text, stop)
            advance(len(places))
    return found


def _padded(model: LiveModel, prompts: Sequence[Example], lengths: Sequence[int] = ()) -> Batch:
    fill = {"input_ids": model.tokenizer.pad_token_id}
    return collate(prompts, lengths=lengths, fill=fill, left=not model.is_encoder_decoder)


class _Ended:
    """Tells which rows of a batch have come to a stop; as `cut_at` cuts them, by their text.

    transformers' own criterion looks for tokens that could make up a string, which not every tokenizer has.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], num_read: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._num_read = num_read

    def __call__(self, tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        # Models of pictures may be asked for the answer alone, without the prompt's tokens.
        written = tokens[:, self._num_read :] if tokens.shape[1] > self._num_read else tokens
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        ended = [any(end in text.lstrip() for end in self._stop) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=tokens.device)


def _batches(model: LiveModel, prompts: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Yield numbers of prompts of like length together; of the same, where padding changes what a model says."""
    order = sorted(range(len(prompts)), key=lambda k: (prompts[k].length, k))
    mixed = batch_size > 1 and len({prompt.length for prompt in prompts}) > 1
    alike = mixed and _minds_padding(model, prompts[order[0]], prompts[order[-1]].length)
    batch: list[int] = []
    for place in order:
        is_other = bool(batch) and alike and prompts[place].length != prompts[batch[0]].length
        if len(batch) == batch_size or is_other:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _minds_padding(model: LiveModel, prompt: Example, length: int) -> bool:
    """Return whether padding before a prompt changes what follows: it enters the state of some recurrent models.

    It is tried on the shortest prompt, padded to the longest, as no list of such models would be whole.
    """
    if model.is_encoder_decoder or "input_ids" not in prompt.inputs:
        return False  # padded behind, where masks are all there is to see
    found = []
    for padded in (prompt.inputs["input_ids"].shape[1], length):
        inputs = _padded(model, [prompt], [padded]).inputs_on(model.device, model.model.dtype)
        given = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True}
        with plain_failures(model.model, "a prompt"):
            found.append(torch.stack(model.model.generate(**inputs, **given).logits)[:, 0].float())
    alone, beside = found
    shared = min(len(alone), len(beside))
    first = (alone[:shared].argmax(-1) != beside[:shared].argmax(-1)).nonzero()[:1, 0].tolist()
    steps = min([shared, *(step + 1 for step in first)])  # what follows another token is another text
    alone, beside = alone[:steps], beside[:steps]
    bound = MINDS if model.model.dtype == torch.float32 else MINDS_COARSE
    return bool((alone - beside).abs().max() > bound * alone.abs().max())


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return the text up to where the first of `stop` begins; blank space before an answer does not end it."""
    body = text.lstrip()
    ends = [body.find(end) for end in stop if end in body]
    return body[: min(ends)] if ends else body
