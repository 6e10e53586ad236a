"""In a Trainer of one's own: masks after every step, the loss as a sum, and a resumed run to the bit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from sculpt.fusion.errors import MethodError, ModelError
from sculpt.training import ConflictTerm, LoRASculptCallback, add_term

from . import tiny


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.randint(5, 20, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row, "labels": row}


class Patterns(transformers.TrainerCallback):
    """Notes after every step which entries are not zero."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = {n: p != 0 for n, p in kwargs["model"].named_parameters() if "lora_" in n}
        self.seen.append(found)


def make(folder: Path, *, callback: Any = None, term: Any = None, model: Any = None, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            **options,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = model or tiny.adapted(tiny.llama())
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.remove_callback(transformers.PrinterCallback)
    for one in (callback, Patterns()):
        if one is not None:
            trainer.add_callback(one)
    if term is not None:
        add_term(trainer, term)
    return trainer


def run(trainer: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer.train(**options)
    return trainer


def patterns(trainer: Any) -> list[dict[str, torch.Tensor]]:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Patterns)).seen


def factors(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_" in n}


def sculpted(folder: Path, **options: Any) -> Any:
    return make(folder, callback=LoRASculptCallback(density=0.2, warmup_steps=3), term=ConflictTerm(), **options)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_masks_hold_after_every_step_and_in_what_is_saved(options, tmp_path):
    trainer = run(sculpted(tmp_path, **options))
    seen = patterns(trainer)
    assert len(seen) == 8
    assert all(mask.float().mean() > 0.9 for mask in seen[1].values())
    for step in range(3, 8):
        for name, mask in seen[step].items():
            assert int(mask.sum()) <= int(0.2 * mask.numel())
            assert not (mask & ~seen[2][name]).any()
    for step in (3, 6):
        for name, tensor in load_file(tmp_path / f"checkpoint-{step}/adapter_model.safetensors").items():
            assert np.count_nonzero(tensor) == int(0.2 * tensor.size), name
            assert not np.signbit(tensor[tensor == 0]).any()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "density" not in logged[0]
    assert 0 < logged[-1]["density"] < 0.4


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(stop, tmp_path):
    whole = run(sculpted(tmp_path / "whole"))
    run(sculpted(tmp_path / "cut"))
    moved = (tmp_path / f"cut/checkpoint-{stop}").rename(tmp_path / f"checkpoint-{stop}")
    resumed = run(sculpted(tmp_path / "elsewhere"), resume_from_checkpoint=str(moved))
    assert len(patterns(resumed)) == 8 - stop
    for name, tensor in factors(whole).items():
        assert torch.equal(tensor, factors(resumed)[name]), name


def test_the_logged_parts_add_up_and_evaluation_is_the_tasks(tmp_path):
    trainer = run(make(tmp_path, term=ConflictTerm(alpha=0.5)))
    for entry in trainer.state.log_history:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["loss_task"] + entry["cmr"])
            assert entry["cmr"] > 0
            assert 0 < entry["term_share"] < 1
    plain = make(tmp_path / "plain", model=trainer.model)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize("counted", [True, False])
def test_accumulated_batches_are_one_large_batch(counted, tmp_path):
    """The term is added once a step, whether the model or the Trainer divides by the number of batches."""
    found = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        trainer = make(
            tmp_path / str(size),
            term=ConflictTerm(alpha=0.5),
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
        )
        trainer.model_accepts_loss_kwargs = counted
        run(trainer)
        entry = trainer.state.log_history[0]
        found.append((entry["loss"], entry["cmr"], entry["grad_norm"]))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_a_plain_loop_gives_the_same_as_the_trainer(tmp_path):
    from sculpt.training import Masking, Sculptor

    settings = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "per_device_train_batch_size": 12}
    trainer = run(sculpted(tmp_path, max_steps=6, **settings))
    model = tiny.adapted(tiny.llama())
    term, sculptor = ConflictTerm(), Sculptor(model, Masking(density=0.2, warmup_steps=3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    rows = [Rows()[k]["labels"] for k in range(12)]
    batch = {"input_ids": torch.stack(rows), "labels": torch.stack(rows)}
    for step in range(1, 7):
        loss = model(**batch).loss + sum(term(model).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sculptor.after_step(step)
    for name, tensor in factors(trainer).items():
        found = dict(model.named_parameters())[name]
        assert torch.equal(found == 0, tensor == 0)
        torch.testing.assert_close(found.detach(), tensor, atol=1e-4, rtol=1e-3)


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(MethodError, match="warm-up of 8 steps leaves none of the 8"):
        run(make(tmp_path / "a", callback=LoRASculptCallback(warmup_steps=8)))
    run(make(tmp_path / "b"))
    with pytest.raises(ModelError, match="goes on from step 6, and its checkpoint holds no masks"):
        run(sculpted(tmp_path / "b"), resume_from_checkpoint=str(tmp_path / "b/checkpoint-6"))


def test_the_trainers_own_way_to_restore_callbacks_works_too(tmp_path):
    run(sculpted(tmp_path))
    stored = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())["stateful_callbacks"]
    callback = LoRASculptCallback.from_state(stored["LoRASculptCallback"])
    assert callback.masking == LoRASculptCallback(density=0.2, warmup_steps=3).masking
