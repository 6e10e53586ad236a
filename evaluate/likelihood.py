"""How likely a model finds given tokens: in batches of like length, with logits computed where they are wanted only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fusion.errors import ModelError
from ..live.model import LiveModel

LOGIT_BYTES = 1 << 29  # of the float32 logits of one batch, unless one row alone has more


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Tokens to be foretold, and those before them.

    Attributes:
        prompt: Seen, not scored. A decoder needs one token at least; of an encoder–decoder it is the encoder's input.
        wanted: Scored, each from the true tokens before it.
    """

    prompt: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What the model makes of the wanted tokens of one row.

    Attributes:
        log_probability: Of all of them together, natural logarithm.
        num_tokens: How many they are.
        num_first: How many of them the model ranks first.
    """

    log_probability: float
    num_tokens: int
    num_first: int


def likelihoods(
    model: LiveModel,
    rows: Sequence[Prompted],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _rows: None,
) -> list[Likelihood]:
    """Return the likelihood of each row's wanted tokens, in the order of the rows.

    Raises:
        ModelError: The model's outputs are not finite.
    """
    found: list[Likelihood | None] = [None] * len(rows)
    for places in _batches(model, rows, batch_size):
        batch = [rows[place] for place in places]
        logits, tokens, owner = _logits(model, batch)
        log_probabilities = logits.float().log_softmax(-1)
        own = log_probabilities.gather(-1, tokens[:, None])[:, 0].double().cpu()
        if not bool(torch.isfinite(own).all()):
            raise ModelError("the model's outputs are not finite", hint="`--dtype float32` computes with a wider range")
        first = (logits.argmax(-1) == tokens).cpu()
        for index, place in enumerate(places):
            mine = owner == index
            found[place] = Likelihood(
                log_probability=float(own[mine].sum()), num_tokens=int(mine.sum()), num_first=int(first[mine].sum())
            )
        advance(len(places))
    return [likelihood for likelihood in found if likelihood is not None]


def _batches(model: LiveModel, rows: Sequence[Prompted], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers of like length together, as many as the batch and its logits have room for."""
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    room = LOGIT_BYTES // (4 * vocabulary)
    order = sorted(range(len(rows)), key=lambda k: (len(rows[k].prompt) + len(rows[k].wanted), k))
    batch: list[int] = []
    wanted = 0
    for place in order:
        more = len(rows[place].wanted)
        if batch and (len(batch) == batch_size or wanted + more > room):
            yield batch
            batch, wanted = [], 0
        batch.append(place)
        wanted += more
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token rows and their attention mask, padded to one length."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    return ids, mask


@torch.inference_mode()
def _logits(model: LiveModel, batch: Sequence[Prompted]) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of every wanted token (n, vocabulary), the tokens (n,), and the row that each is of (n,)."""
    if model.is_encoder_decoder:
        ids, mask = pad([row.prompt for row in batch], 0)
        start = model.model.config.decoder_start_token_id
        decoder, decoder_mask = pad([(start, *row.wanted[:-1]) for row in batch], 0)
        where = decoder_mask.bool()
        inputs = model.inputs(
            input_ids=ids, attention_mask=mask, decoder_input_ids=decoder, decoder_attention_mask=decoder_mask
        )
    else:
        ids, mask = pad([(*row.prompt, *row.wanted)[:-1] for row in batch], 0)
        where = torch.zeros_like(mask, dtype=torch.bool)
        for index, row in enumerate(batch):
            where[index, len(row.prompt) - 1 : len(row.prompt) + len(row.wanted) - 1] = True
        inputs = model.inputs(input_ids=ids, attention_mask=mask)
    tokens = torch.tensor([token for row in batch for token in row.wanted])
    owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(row.wanted) for row in batch]))
    with _only_at(model, where):
        logits = model.model(**inputs, use_cache=False).logits
    return logits, tokens.to(logits.device), owner


@contextmanager
def _only_at(model: LiveModel, where: Tensor) -> Iterator[None]:
    """Let the output layer see the wanted positions only: a fifth of a small model's work, and most of its memory."""

    def select(_module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[where.to(hidden.device)], *arguments[1:])

    hook = model.model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
