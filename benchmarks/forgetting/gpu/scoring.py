"""Scores of a running model on tokens, all in one pass: answers, texts, choices, and distance from the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
BATCH_TOKENS = 8192
LOGIT_ROWS = 1024
Row = tuple[list[int], list[int]]


def hidden_of(model: Any, ids: Tensor) -> Tensor:
    """Return what the output layer sees. Padding is on the right, where a causal model does not look."""
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


def head_of(model: Any, hidden: Tensor) -> Tensor:
    return model.get_output_embeddings()(hidden)


def batches(
    rows: Sequence[Row], device: torch.device, tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens, the answers that they are part of, and which are no padding, rows of like length together."""
    for places in places_of(rows, tokens):
        yield collated([rows[place] for place in places], device)


def places_of(rows: Sequence[Row], tokens: int) -> Iterator[list[int]]:
    order, batch = sorted(range(len(rows)), key=lambda k: len(rows[k][0])), []
    for place in order:
        if batch and (len(batch) + 1) * len(rows[place][0]) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def collated(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    answers = torch.tensor([[*found, *[IGNORED] * (length - len(found))] for _, found in rows])
    mask = torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids, _ in rows])
    return ids.to(device), answers.to(device), mask.to(device)


class Scorer:
    """One split of a task and of all abilities, ready on the device.

    Args:
        sources: By name: `kind`, `rows`, and of choices the `right` ones and how many there are.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        self.sources, self.device = sources, device
        rows: list[Row] = []
        self.ranges: dict[str, tuple[int, int]] = {}
        for name, source in sources.items():
            self.ranges[name] = (len(rows), len(rows) + len(source["rows"]))
            rows += [(list(ids), list(answers)) for ids, answers in source["rows"]]
        self.num_rows = len(rows)
        chats = range(*self.ranges["chats"]) if "chats" in self.ranges else range(0)
        self.parts = []
        for places in places_of(rows, BATCH_TOKENS):
            ids, answers, _ = collated([rows[place] for place in places], device)
            where = answers[:, 1:] != IGNORED
            number = torch.tensor(places, device=device)[where.nonzero()[:, 0]]
            compared = (
                (number >= chats.start) & (number < chats.stop) if len(chats) else torch.zeros_like(number).bool()
            )
            self.parts.append((ids, where, ids[:, 1:][where], answers[:, 1:][where], number, compared))
        self.base: list[Tensor] = []  # logits of the base where it is compared with

    @torch.inference_mode()
    def _figures(self, model: Any, *, keep: bool) -> list[Tensor]:
        """Return row, answer, log-probability, first or not, of every token to be predicted, and divergences."""
        found, apart = [], []
        before = iter(self.base)
        for ids, where, tokens, answers, number, compared in self.parts:
            hidden = hidden_of(model, ids)[:, :-1][where]
            for start in range(0, len(tokens), LOGIT_ROWS):
                part = slice(start, start + LOGIT_ROWS)
                logits = head_of(model, hidden[part]).float()
                logs = logits - logits.logsumexp(-1, keepdim=True)
                own = logs.gather(1, tokens[part, None])[:, 0]
                found.append(torch.stack([number[part], answers[part], own, logits.argmax(-1) == tokens[part]]))
                told = compared[part]
                if bool(told.any()):
                    mine = logs[told]
                    if keep:
                        self.base.append(mine.to(torch.float16))
                    reference = mine if keep else next(before).float()
                    reference = reference - reference.logsumexp(-1, keepdim=True)
                    apart.append(
                        torch.stack(
                            [
                                (reference.exp() * (reference - mine)).sum(-1),
                                (reference.argmax(-1) == mine.argmax(-1)).float(),
                            ]
                        )
                    )
        return [torch.cat(found, 1).double().cpu(), torch.cat(apart, 1).double().cpu() if apart else torch.zeros(2, 0)]

    def score(self, model: Any, *, keep: bool = False) -> dict[str, float]:
        """Return a figure of each source: accuracy in percent, or mean loss; of chats divergence and same tokens.

        Args:
            keep: The model is the base, from which others are told apart.
        """
        if keep:
            self.base = []
        tokens, apart = self._figures(model, keep=keep)
        figures: dict[str, float] = {}
        rows, answers, logs, first = tokens
        for name, (start, stop) in self.ranges.items():
            mine = (rows >= start) & (rows < stop)
            kind = self.sources[name]["kind"]
            if kind == "text":
                figures[name] = -float(logs[mine].mean())
            elif kind == "answers":
                key = rows[mine] * 4096 + answers[mine]
                _, where = key.unique(return_inverse=True)
                right = torch.ones(int(where.max()) + 1, dtype=torch.float64)
                right.scatter_reduce_(0, where, first[mine], "amin")
                figures[name] = 100 * float(right.mean())
                figures[f"{name} loss"] = -float(logs[mine].mean())
            elif kind == "choice":
                total = torch.zeros(stop - start, dtype=torch.float64)
                total.index_add_(0, (rows[mine] - start).long(), logs[mine])
                chosen = total.reshape(-1, self.sources[name]["choices"]).argmax(1)
                figures[name] = 100 * float((chosen == torch.tensor(self.sources[name]["right"])).double().mean())
            else:
                figures[name] = float(apart[0].mean())
                figures[f"{name} same"] = 100 * float(apart[1].mean())
        if any(math.isnan(value) for value in figures.values()):
            figures = {name: 99.0 if math.isnan(value) else value for name, value in figures.items()}
        return figures
