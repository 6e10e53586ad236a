"""transformers' own Trainer ends a training with a repaired model."""

from __future__ import annotations

import json
from pathlib import Path

import sculpt
import torch
from sculpt.demo.tiny import byte_tokenizer
from sculpt.fusion.record.manifest import Manifest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def test_a_training_ends_with_a_repaired_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    base, text = tmp_path / "base", tmp_path / "text.jsonl"
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    text.write_text("".join(json.dumps({"text": word * 4}) + "\n" for word in ("the cat ", "a dog ")))
    task = tmp_path / "task.jsonl"
    task.write_text('{"text": "the task at hand"}\n')
    ids = torch.tensor(tokenizer("the task at hand")["input_ids"])
    repair = sculpt.RepairCallback(
        base,
        calibration=sculpt.Calibration(
            data=task, samples=1, protect=str(text), protect_samples=2, protect_check=False, device="cpu"
        ),
    )
    Trainer(
        LlamaForCausalLM.from_pretrained(base),
        TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=2, learning_rate=0.05, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": ids, "labels": ids}] * 8,  # pyright: ignore[reportArgumentType]
        processing_class=tokenizer,
        callbacks=[repair],
    ).train()  # fmt: skip
    states = [
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (base, tmp_path / "run/fine-tuned", tmp_path / "run/repaired")
    ]
    before, tuned, repaired = [state["model.layers.0.mlp.up_proj.weight"] for state in states]
    assert not torch.equal(repaired, before)
    assert not torch.equal(repaired, tuned)
    assert Manifest.read(tmp_path / "run/repaired").method == "two-sided"
