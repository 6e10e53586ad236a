"""Tiny models with a byte tokenizer: a Llama pair, a T5, a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sculpt.demo.tiny import byte_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama(seed: int, *, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Pair:
    base: Path
    tuned: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Llama in bfloat16, and the same moved by noise, of which a part is zero."""
    folder = tmp_path_factory.mktemp("pair")
    model = llama(0).to(torch.bfloat16)
    base = save(model, folder / "base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            noise[torch.rand(parameter.shape, generator=generator) < 0.1] = 0
            parameter += noise.to(parameter.dtype)
    return Pair(base=base, tuned=save(model, folder / "tuned"))


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of JSON lines."""

    def write(name: str, *rows: dict[str, Any]) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a writer of suites."""

    def write(text: str) -> Path:
        file = tmp_path / "suite.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write
