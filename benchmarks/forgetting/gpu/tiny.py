"""A random model and random data in the campaign's form, to see that all of it runs: `tiny.py FOLDER`."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 97


def write(folder: Path) -> None:
    """Write `model/` and `campaign.json.gz`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    draw = random.Random(0)

    def row(read: int, answers: int) -> list[list[int]]:
        ids = [draw.randrange(VOCABULARY) for _ in range(read + answers)]
        return [ids, [-100] * read + [k // 2 for k in range(answers)]]

    def rows(count: int, read: int = 5, answers: int = 4) -> list[Any]:
        return [row(read + k % 3, answers) for k in range(count)]

    tasks = {
        f"{task} {form}": {"train": rows(64), "validation": rows(4), "test": rows(6)}
        for task in ("tagging", "pronouncing", "classing")
        for form in ("plain", "chat")
    }
    texts = {name: {"kind": "text", "rows": rows(3, 1, 20)} for name in ("prose", "docs", "code")}
    texts["facts"] = {"kind": "answers", "rows": rows(3)}
    for name in ("next", "opposites", "french"):
        texts[name] = {"kind": "choice", "rows": rows(8, 3, 1), "right": [1, 2], "choices": 4}
    found = {
        "tasks": tasks,
        "abilities": {name: {"validation": one, "test": one} for name, one in texts.items()},
        "asked": {split: [row(4 + k, 0)[0] for k in range(3)] for split in ("validation", "test")},
        "general": [{"kind": ("novels", "chats")[k % 2], "ids": ids} for k, (ids, _) in enumerate(rows(40, 8, 8))],
    }
    with gzip.open(folder / "campaign.json.gz", "wt") as stream:
        json.dump(found, stream)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
