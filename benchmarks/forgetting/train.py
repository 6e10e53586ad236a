"""The fine-tunes that forget, of all weights or of a LoRA adapter: two minutes each, kept by task, kind and seed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sculpt.demo.models import new_folder
from sculpt.training.full import FullTraining, fine_tune
from tasks import TASKS

STEPS = 64
RANK, ALPHA = 16, 32
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPORT = "training.json"


def tuned_folder(work: Path, task: str, kind: str, seed: int) -> Path:
    return work / "tuned" / f"{task}-{kind}-{seed}"


def train(work: Path, task: str, kind: str, seed: int) -> Path:
    """Return the fine-tune's folder, a checkpoint in bfloat16 or a PEFT adapter; trained unless it is there."""
    folder = tuned_folder(work, task, kind, seed)
    if folder.exists():
        return folder
    goal = TASKS[task]
    base = goal.model.base(work)
    rows = [goal.model.encode(example) for example in goal.examples["train"]]
    torch.manual_seed(seed)
    model = goal.model.load(work, base)
    adapter = with_adapter(model) if kind == "lora" else None
    training = FullTraining(
        steps=STEPS, batch_size=goal.batch_size, learning_rate=goal.learning_rate[kind], max_minutes=None, seed=seed
    )
    report = fine_tune(model, rows, training, compute=goal.model.compute)
    with new_folder(folder) as building:
        if adapter is None:
            goal.model.save(model, building)
        else:
            adapter.save_pretrained(building, save_embedding_layers=False)
        said = {**asdict(training), **asdict(report)}
        (building / REPORT).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return folder


def with_adapter(model: Any) -> Any:
    """Put a LoRA on every linear layer of the model, in place, and freeze the rest; return PEFT's model."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR, task_type="CAUSAL_LM"))
