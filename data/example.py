"""A row, encoded once: what the model is given, and which tokens of it are to be predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # what torch's cross-entropy leaves out
# Inputs of one number a token, with what they are padded with; any other input makes an example one that calibration
# does not pad.
PADDED = {
    "input_ids": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "decoder_input_ids": 0,
    "decoder_attention_mask": 0,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """The inputs of `model.forward` for one row or a piece of one, batch axis included.

    Calibration counts every token; training, learning and scoring predict those that `answers` numbers, each from the
    true tokens before it.

    Attributes:
        inputs: By argument name.
        tokens: (1, length), what a decoder goes through: its `input_ids`; of an encoder–decoder the
            `decoder_input_ids`, and after them the end that those lack. (1, 0) where there is no decoder or no text.
        answers: (1, length), the number of the answer that each token is part of, `IGNORED` where it is only read. A
            row with one answer numbers it 0. The first token has nothing before it and is never predicted.
        what: Names the example in messages.
        kind: The kind of data that it is of, where there are several.
    """

    inputs: Mapping[str, Tensor]
    tokens: Tensor
    answers: Tensor
    what: str = ""
    kind: str | None = None

    @classmethod
    def of_tokens(cls, ids: Sequence[int], answers: Sequence[int], what: str = "") -> Example:
        """Return a decoder's example of token ids alone."""
        row = torch.tensor([list(ids)], dtype=torch.int64)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        return cls(inputs=inputs, tokens=row, answers=torch.tensor([list(answers)], dtype=torch.int64), what=what)

    @property
    def num_tokens(self) -> int:
        """Tokens of encoder and decoder together; images and sound are counted as the tokens that they become."""
        return sum(self.inputs[key].numel() for key in ("input_ids", "decoder_input_ids") if key in self.inputs)

    @property
    def length(self) -> int:
        """Tokens of the longest input."""
        return max((self.inputs[key].shape[1] for key in PADDED if key in self.inputs), default=0)

    @property
    def is_text(self) -> bool:
        """Whether all inputs have one number a token, so that tokens say how large they are."""
        return set(self.inputs) <= set(PADDED)

    @property
    def num_predicted(self) -> int:
        """How many tokens are to be predicted."""
        return int((self.answers[:, 1:] != IGNORED).sum())

    @property
    def num_counted(self) -> int:
        """How many tokens are an answer's, the first of all included, and in an encoder all."""
        own = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        size = 0 if own is None else own.shape[1]
        read = (
            self.inputs["input_ids"].numel() if "decoder_input_ids" in self.inputs and "input_ids" in self.inputs else 0
        )
        return read + int((self.answers[:, :size] != IGNORED).sum())

    @property
    def num_answers(self) -> int:
        """How many answers there are."""
        return int(self.answers.max()) + 1 if self.num_predicted else 0

    def cut(self, num_tokens: int) -> Example:
        """Return the beginning of an example of text, of so many tokens: in encoder and decoder half of them each.

        One with pictures or sound is returned whole.
        """
        if self.num_tokens <= num_tokens or not set(self.inputs) <= set(PADDED):
            return self
        length = max(1, num_tokens // (2 if "decoder_input_ids" in self.inputs else 1))
        inputs = {key: value[:, :length] if key in PADDED else value for key, value in self.inputs.items()}
        return dataclasses.replace(
            self, inputs=inputs, tokens=self.tokens[:, :length], answers=self.answers[:, :length]
        )
