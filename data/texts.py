"""Rows of text to token ids, and token ids to the inputs of a model with one stack or with two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..fusion.errors import DataError

KINDS = "`text`, `messages`, `prompt` and `completion`, `input_ids`, `image` or `audio`"


class Texts:
    """Turns text into samples for one model.

    Attributes:
        folder: Of the tokenizer.
        config: Of the model.
        arguments: Of the model's forward.
        max_length: Longer samples are cut; no more than the model has positions for.
    """

    def __init__(
        self, folder: Path, model: Any, arguments: frozenset[str], *, max_length: int, trust_remote_code: bool
    ) -> None:
        self.folder = folder
        self.config = model.config
        self.arguments = arguments
        self.trust_remote_code = trust_remote_code
        limit = num_positions(model)
        self.max_length = max_length if limit is None else min(max_length, limit)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        from transformers import AutoTokenizer

        return self.from_folder(AutoTokenizer, "tokenizer")

    def from_folder(self, auto: Any, what: str) -> Any:
        """Return what a transformers Auto class loads from the model's folder.

        Raises:
            DataError: There is none.
        """
        try:
            return auto.from_pretrained(self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # transformers raises anything on missing or damaged files
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(
                f"`{self.folder}` has no {what} that transformers can load: {lines[0].rstrip('.')}",
                hint="rows of `input_ids` need none" if what == "tokenizer" else None,
            ) from error

    def token_ids(
        self, row: Mapping[str, Any], documents: bool, what: str
    ) -> Iterator[tuple[list[int], list[int] | None]]:
        """Yield (ids, None), or for an encoder–decoder (ids of the prompt, ids of the completion)."""
        if "messages" in row:
            yield self._chat(row["messages"], what), None
        elif "prompt" in row and "completion" in row:
            yield from self._prompted(row["prompt"], row["completion"], what)
        elif isinstance(row.get("text"), str):
            ids = self.tokenizer(row["text"], truncation=not documents, max_length=self.max_length)["input_ids"]
            step = self.max_length if documents else max(1, len(ids))
            for start in range(0, len(ids), step):
                yield ids[start : start + step], None
        else:
            keys = ", ".join(f"`{key}`" for key in row) or "nothing"
            raise DataError(f"{what} holds {keys}; expected {KINDS}")

    def _prompted(self, prompt: Any, completion: Any, what: str) -> Iterator[tuple[list[int], list[int] | None]]:
        if isinstance(prompt, list) and isinstance(completion, list):
            yield self._chat([*prompt, *completion], what), None
        elif not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(f"`prompt` and `completion` of {what} must both be text, or both lists of messages")
        elif self.config.is_encoder_decoder:
            yield self.cut(prompt), self.cut(completion)
        else:
            yield self.cut(prompt + completion), None

    def cut(self, text: str) -> list[int]:
        """Return the token ids of a text, cut to the longest length."""
        return self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]

    def _chat(self, messages: Any, what: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"{what} holds `messages`, but the tokenizer in `{self.folder}` has no chat template",
                hint="rows of `text` need none",
            )
        try:
            encoded = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {what}: {error}") from error
        return list(encoded["input_ids"])[: self.max_length]

    def inputs_of(self, ids: Sequence[int], decoder_ids: Sequence[int] | None) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs for token ids, nothing for none; of a lone text an encoder–decoder gets half each."""
        ids = list(ids)[: self.max_length]
        if self.config.is_encoder_decoder and decoder_ids is None:
            half = -(-len(ids) // 2)
            ids, decoder_ids = ids[:half], ids[half:]
        if not ids:
            return
        tensor = torch.tensor([ids], dtype=torch.int64)
        inputs = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
        yield self.with_decoder(inputs, decoder_ids)

    def with_decoder(self, inputs: dict[str, Tensor], ids: Sequence[int] | None) -> dict[str, Tensor]:
        """Return the inputs with the decoder's: its start token, then the completion but for its end."""
        takes = "decoder_input_ids" in self.arguments
        if takes and "decoder_input_ids" not in inputs:
            config = self.config.get_text_config(decoder=True)
            first = next(
                value
                for value in (
                    getattr(self.config, "decoder_start_token_id", None),
                    getattr(config, "decoder_start_token_id", None),
                    getattr(config, "bos_token_id", None),
                    getattr(config, "pad_token_id", None),
                    0,
                )
                if value is not None
            )
            ids = list(ids or ())
            if ids and ids[-1] == getattr(config, "eos_token_id", None):
                ids.pop()
            shifted = ids if ids[:1] == [first] else [first, *ids]
            inputs["decoder_input_ids"] = torch.tensor([shifted[: self.max_length]], dtype=torch.int64)
        return inputs


def num_positions(model: Any) -> int | None:
    """Return the longest input that a model has positions for, where it says."""
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    # RoBERTa counts positions from after the padding index.
    offset = (getattr(text, "pad_token_id", None) or 0) + 1 if _counts_from_padding(model) else 0
    return limit - offset


def _counts_from_padding(model: Any) -> bool:
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )
