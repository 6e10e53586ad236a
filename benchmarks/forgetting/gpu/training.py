"""Fine-tunes that forget, on the device: mild and harsh, by AdamW, Muon or as a LoRA."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sculpt.data.example import Example
from sculpt.training.full import FullTraining, fine_tune

from .scoring import Row

STEPS = 64
RATES = {"tagging": 1.5e-4, "pronouncing": 3e-4, "classing": 2e-4}
BATCH = {"tagging": 8, "pronouncing": 16, "classing": 16}
LORA_RATE = 5e-4
HARSHER = (4.0, 8.0, 16.0)  # times the mild rate, until the base's prose is lost
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Muon:
    """Muon on the matrices of the layers, AdamW on the rest; what `fine_tune` asks of an optimiser."""

    def __init__(self, model: Any, rate: float) -> None:
        matrices, rest = [], []
        for name, parameter in model.named_parameters():
            (matrices if parameter.ndim == 2 and ".layers." in name else rest).append(parameter)
        # The size of a step is made that of AdamW's, so the same rates suit.
        own = torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.parts = (own, torch.optim.AdamW(rest, lr=rate, weight_decay=0.0))

    @property
    def param_groups(self) -> list[Any]:
        return list(itertools.chain.from_iterable(part.param_groups for part in self.parts))

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, *, set_to_none: bool) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def train(
    load: Callable[[], Any],
    rows: Sequence[Row],
    task: str,
    kind: str,
    seed: int,
    lost: Callable[[Any], bool],
    steps: int,
    rates: float = 1.0,
) -> tuple[Any, dict[str, Any]]:
    """Return a trained model in float32, an adapter merged, and what was done.

    Args:
        lost: Whether a model has lost its prose: a harsh fine-tune takes higher rates until it has.
        rates: What RATES are multiplied by, for another model.
    """
    examples = [Example.of_tokens(ids, answers) for ids, answers in rows]
    for times in HARSHER if kind == "harsh" else (1.0,):
        model = load()
        torch.manual_seed(seed)
        adapter = None
        if kind == "lora":
            from peft import LoraConfig, get_peft_model

            adapter = get_peft_model(
                model, LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
            )
        rate = LORA_RATE if kind == "lora" else times * rates * RATES[task]
        training = FullTraining(steps=steps, batch_size=BATCH[task], learning_rate=rate, max_minutes=None, seed=seed)
        optimizer = (lambda _, model=model, rate=rate: Muon(model, rate)) if kind == "muon" else None
        trained = fine_tune(model, examples, training, compute=torch.float32, optimizer=optimizer)
        if adapter is not None:
            model = adapter.merge_and_unload()
        if kind != "harsh" or lost(model):
            break
        if times != HARSHER[-1]:
            del model
    return model, {"rate": rate, "loss": trained.final_loss, "seconds": trained.seconds}
