"""The story with nothing to download: a tiny Llama, trained here on the text that ships, then taught a cipher."""

from __future__ import annotations

import codecs
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..fusion.file_kinds import CONFIG
from ..training.full import FullTraining, fine_tune
from .models import new_folder, save_checkpoint
from .task import DemoTask, Question, encode_prose

SEPARATOR = "%%"
SPLIT_SEED = 1851
# How many of the 154 documents go where; the base is trained on the rest. It does not move with a run's seed.
NUM_TRAIN, NUM_VALIDATION, NUM_TEST, NUM_PROSE = 24, 6, 10, 14
LINE_CHARACTERS, PROMPT_CHARACTERS = 160, 16
NUM_LINES = 96


@dataclass(frozen=True, kw_only=True)
class TinySize:
    """The base model and how long it is trained."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 2
    steps: int = 200
    batch_size: int = 16
    learning_rate: float = 3e-3


def documents() -> list[str]:
    """Return the documents of the calibration text that ships with the package."""
    text = files("sculpt.configs").joinpath("calibration.txt").read_text(encoding="utf-8")
    return [document.strip() for document in text.split(f"\n{SEPARATOR}\n")]


def split_documents() -> dict[str, list[str]]:
    """Return the documents of each part: disjoint, in a random order that is always the same."""
    shuffled = documents()
    random.Random(SPLIT_SEED).shuffle(shuffled)
    split: dict[str, list[str]] = {}
    for part, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION), ("test", NUM_TEST), ("prose", NUM_PROSE)):
        split[part], shuffled = shuffled[:count], shuffled[count:]
    return {**split, "base": shuffled}


def cipher_task() -> DemoTask:
    """Return the task of going on in ROT13: English with the letters moved 13 places along the alphabet.

    Each character is one answer. A model of plain English can't do it, and one that learned it has new habits for
    every letter, so it forgets.
    """
    split = split_documents()
    return DemoTask(
        name="going on in ROT13 (text that ships)",
        train=_cipher_lines(split["train"], None),
        validation=_cipher_lines(split["validation"], NUM_LINES),
        test=_cipher_lines(split["test"], NUM_LINES),
        prose=tuple(_lines(split["prose"], NUM_LINES)),
    )


def tiny_llama(
    cache: Path, *, size: TinySize, seed: int, compute: Any, advance: Callable[[], None] = lambda: None
) -> Path:
    """Return a tiny Llama of bytes, trained on the text that ships, as a checkpoint folder; trained once, then cached.

    Args:
        compute: The torch dtype of the matrix products.
        advance: Called after each of `size.steps` training steps.
    """
    recipe = repr((asdict(size), seed, str(compute), SPLIT_SEED, documents())).encode()
    folder = cache / "models" / f"tiny-llama-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if (folder / CONFIG).is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=3 * size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = [encode_prose(line, tokenizer, 2 * LINE_CHARACTERS) for line in _lines(split_documents()["base"], None)]
    training = FullTraining(
        steps=size.steps, batch_size=size.batch_size, learning_rate=size.learning_rate, max_minutes=None, seed=seed
    )
    fine_tune(model, rows, training, compute=compute, advance=advance)
    with new_folder(folder) as building:
        save_checkpoint(model, tokenizer, building)
    return folder


def byte_tokenizer() -> Any:
    """Return a transformers tokenizer with one token a byte, and one to end and pad with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|end|>"
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([end, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def _lines(texts: Sequence[str], count: int | None) -> list[str]:
    """Return pieces of the texts, all of one length: the first `count` in a random order that is always the same."""
    pieces = [
        text[start : start + LINE_CHARACTERS]
        for text in texts
        for start in range(0, len(text) - LINE_CHARACTERS + 1, LINE_CHARACTERS)
    ]
    random.Random(SPLIT_SEED).shuffle(pieces)
    return pieces[:count]


def _cipher_lines(texts: Sequence[str], count: int | None) -> tuple[Question, ...]:
    lines = [codecs.encode(line, "rot13") for line in _lines(texts, count)]
    return tuple(Question(prompt=line[:PROMPT_CHARACTERS], answers=tuple(line[PROMPT_CHARACTERS:])) for line in lines)
