"""The language model of the text tasks."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from corpora import GENERAL_TOKENS
from sculpt.data.example import Example
from sculpt.demo.models import save_checkpoint, smollm2
from sculpt.demo.task import Question, encode_prose, encode_question
from sculpt.fusion.cache import default_cache
from sculpt.live.model import load_model


class Language:
    """SmolLM2-135M-Instruct.

    Attributes:
        compute: The type of a fine-tune's matrix products.
    """

    compute = torch.float32

    def base(self, _work: Path) -> Path:
        """Return the base's folder, made if need be."""
        return smollm2(default_cache())

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(smollm2(default_cache()), local_files_only=True)

    def encode(self, item: str | Question) -> Example:
        """Return a question, or the beginning of a text, as tokens."""
        if isinstance(item, str):
            return encode_prose(item, self.tokenizer, GENERAL_TOKENS)
        return encode_question(item, self.tokenizer)

    def load(self, _work: Path, folder: Path) -> Any:
        """Return a checkpoint's model, as those that train and score it take it."""
        return load_model(folder, dtype=torch.float32, device="cpu").model

    def save(self, model: Any, folder: Path) -> None:
        """Write the checkpoint of a model that `load` gave."""
        save_checkpoint(model, self.tokenizer, folder)
