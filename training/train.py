"""Train an adapter of a base on a data file: a folder that is whole or not there, from a run that may be killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..data.encoding import Encoder
from ..data.rows import chosen, open_rows
from ..fusion.checkpoint import Source
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.checkpoint.identity import digest_of_data
from ..fusion.checkpoint.open import open_whole
from ..fusion.checkpoint.output.guard import ADAPTER, refuse_output
from ..fusion.checkpoint.output.workspace import CHECKPOINTS, Workspace
from ..fusion.errors import ModelError, installs
from ..fusion.lora.write import entries_of_base, publish_adapter, write_adapter
from ..fusion.progress import Progress, silent, watched
from ..live.devices import compute_dtype, pick_device
from ..live.privates import around_saving, use_one_gpu
from .callback import LoRASculptCallback
from .data import TrainingSet, collate_labelled
from .model import load_base, optimizer_of, their_deprecations, with_adapter
from .settings import AdapterMethod, Schedule, split
from .terms import QKV, ConflictTerm, L2Term, OrthogonalTerm, Term
from .together import from_first, join
from .trainer import add_term
from .watcher import EachEpoch, Watcher, may_fail
from .work import is_last, settle

LR_WARMUP = 0.03
MASK_WARMUP = 100
OF_A_RUN = ("output", "seconds", "resumed_from")
TIMES = ("term_seconds", "term_share")  # of an entry of the log
LOG_STEPS, LOGGED = 10, 20  # every ten steps, or so often that there are twenty


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained.

    Attributes:
        steps: Optimiser steps in all; `resumed_from` of them in an earlier run.
        num_samples: Of the data; `left_out` more had nothing to predict.
        num_modules, num_parameters: Of the adapter.
        seconds: Of this run's training.
        density: Of all B·A at the end, or None where nothing is masked.
        log: What the Trainer logged: `step`, `loss` and its parts (`loss_task`, `cmr`, `connector`, `l2`, `orth`),
            `density`, and the time that the regulariser took.
    """

    output: Path
    method: str
    steps: int
    resumed_from: int
    num_samples: int
    left_out: int
    num_modules: int
    num_parameters: int
    seconds: float
    density: float | None
    log: tuple[dict[str, float], ...]

    def __fspath__(self) -> str:
        return str(self.output)

    def __repr__(self) -> str:
        return f"Trained({self.method}, {self.steps} steps, in {self.output})"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "output": str(self.output), "log": list(self.log)}

    def recorded(self) -> dict[str, Any]:
        """Return what is the same whenever, wherever and after however many interruptions it is trained."""
        log = [{key: value for key, value in entry.items() if key not in TIMES} for entry in self.log]
        return {key: value for key, value in self.as_json().items() if key not in OF_A_RUN} | {"log": log}


def plan_of(base: Source, data: Path, method: AdapterMethod, schedule: Schedule) -> dict[str, Any]:
    """Return all that decides what is trained, as plain values."""
    free = ("device", "save_steps", "media")
    return {
        "base": base.resume_key(),
        "data": digest_of_data(data),
        "method": asdict(method),
        "schedule": {key: value for key, value in asdict(schedule).items() if key not in free},
    }


def recorded_plan(plan: dict[str, Any], base: Source) -> dict[str, Any]:
    """Return a plan as the adapter tells it: with the base's fingerprint, in place of when its files were written."""
    return {**plan, "base": base.fingerprint}


@watched
@takes_models("base")
def train_adapter(
    base: Model,
    *,
    data: Path | str,
    output: Path | str,
    method: AdapterMethod | None = None,
    schedule: Schedule | None = None,
    resume: bool = True,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a LoRA of `base` on the completions of `data` and write it to the folder `output`.

    Until it is whole there is only `<output>.partial`, with the Trainer's checkpoints; after a kill or an error of the
    machine the same call goes on from the last of them, to the same bits on a CPU as without the interruption.
    `command` is the command line, for the adapter's record.

    Raises:
        SculptError: Base, data or settings do not suit each other, the output exists, or the loss is not finite.
    """
    method, schedule = method or AdapterMethod(), schedule or Schedule()
    data, output = Path(data), Path(output)
    require_peft()
    refuse_output(output, [base, data], ADAPTER, overwrite=overwrite)
    if schedule.keep_epochs:  # those of a run that was killed are written again
        for epoch in range(1, math.ceil(schedule.epochs) + 1):
            refuse_output(output_of(output, epoch), [base, data], ADAPTER, overwrite=resume or overwrite)
    process = join(schedule.device)
    opened = open_whole(base)
    entries_of_base(opened.ref)  # refuses what no adapter could name, before the long part
    rows = open_rows(data, schedule.media, fields=schedule.fields)
    device = pick_device(schedule.device)
    if device.index is not None and ":" in schedule.device:
        raise ModelError(
            f"training does not take the number of a device, as in `{schedule.device}`",
            hint=f"`CUDA_VISIBLE_DEVICES={device.index}` shows one device only",
        )
    dtype = compute_dtype(schedule.dtype, opened, device)
    model = load_base(opened, dtype=dtype)
    model.config.use_cache = False
    encoder = Encoder(opened.folder or base, model, max_length=schedule.max_length, options=schedule, ends_texts=True)
    numbers = None if schedule.samples is None else sorted(chosen(schedule.samples, rows.count, schedule.seed))
    examples = TrainingSet(rows, encoder, lambda done, total, _what: progress(done, total, "reading data"), numbers)
    transformers.set_seed(schedule.seed)
    tuned = with_adapter(model, method)
    plan = plan_of(opened, data, method, schedule)
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(output, made_by="lora-train")) if process.is_first else None
        folder = from_first(workspace.folder if workspace is not None else None, process)
        checkpoint = settle(folder, plan, resume=resume, writes=process.is_first)
        trainer = _trainer(tuned, examples, method, schedule, folder / CHECKPOINTS, dtype=dtype, device=device)
        around_saving(trainer, lambda save: _save(trainer, folder / CHECKPOINTS, save))
        watcher = Watcher(progress)
        trainer.add_callback(watcher)
        record = {"made by": "sculpt lora-train", "command": command, "settings": recorded_plan(plan, opened)}
        if schedule.keep_epochs and process.is_first:
            trainer.add_callback(
                EachEpoch(
                    lambda epoch: write_adapter(
                        output_of(output, epoch), *_written(tuned, opened), record, overwrite=resume or overwrite
                    )
                )
            )
        if workspace is not None:
            workspace.begun = workspace.resumable = True
        if checkpoint is not None and is_last(checkpoint):
            # The Trainer would make a step beyond the last, where that is not the last of an epoch.
            trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        start = time.monotonic()
        with their_deprecations():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        masks = next((c for c in trainer.callback_handler.callbacks if isinstance(c, LoRASculptCallback)), None)
        trained = Trained(
            output=output,
            method=method.method,
            steps=trainer.state.global_step,
            resumed_from=watcher.first,
            num_samples=len(examples),
            left_out=examples.left_out,
            num_modules=sum(1 for name, _ in tuned.named_modules() if name.endswith(".lora_A")),
            num_parameters=sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad),
            seconds=time.monotonic() - start,
            density=masks.sculptor.density() if masks is not None and masks.sculptor is not None else None,
            log=tuple(entry for entry in trainer.state.log_history if "loss" in entry),
        )
        if workspace is not None:
            publish_adapter(workspace, *_written(tuned, opened), {**record, **trained.recorded()}, overwrite=overwrite)
    return trained


def output_of(output: Path, epoch: int) -> Path:
    """Return the folder of an epoch's adapter."""
    return output.with_name(f"{output.name}-epoch-{epoch}")


def require_peft() -> None:
    """Raise ModelError where PEFT is not installed."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise ModelError("training an adapter needs PEFT", hint=installs("train"))


def term_of(method: AdapterMethod) -> Term | None:
    """Return what a method adds to the loss."""
    if method.method == "lorasculpt" and (method.alpha or (method.beta and method.adapted_connectors)):
        return ConflictTerm(
            alpha=method.alpha,
            beta=method.beta,
            omega=method.omega,
            layers=method.cmr,
            modules=split(method.guard) or QKV,
            connector=method.adapted_connectors,
        )
    strength = 1e-3 if method.strength is None else method.strength
    return {"l2": L2Term, "orth": OrthogonalTerm}[method.method](strength) if method.method in ("l2", "orth") else None


def _trainer(
    model: Any,
    examples: TrainingSet,
    method: AdapterMethod,
    schedule: Schedule,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    accelerated = device.type != "cpu"
    a_step = schedule.batch_size * schedule.gradient_accumulation
    steps = schedule.max_steps or math.ceil(schedule.epochs * len(examples) / a_step)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=LR_WARMUP,
        weight_decay=0.0,
        optim="adamw_torch",
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        # float16 needs its gradients scaled; bfloat16 does not, and the adapter is float32 in any case.
        fp16=accelerated and dtype == torch.float16,
        use_cpu=not accelerated,
        save_strategy="steps" if schedule.save_steps else "no",
        save_steps=max(1, schedule.save_steps),
        save_total_limit=2,
        logging_steps=max(1, min(LOG_STEPS, steps // LOGGED)),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=accelerated,
        label_names=["labels"],
        seed=schedule.seed,
        data_seed=schedule.seed,
    )
    use_one_gpu(arguments)  # several are for `accelerate launch`
    trainer: Any = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate_labelled,
        optimizers=(optimizer_of(model, method, schedule.learning_rate), None),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if method.method == "lorasculpt":
        warmup = method.warmup_steps or max(2, min(MASK_WARMUP, steps // 2))
        trainer.add_callback(LoRASculptCallback(method.density, warmup, method.adapted_connectors))
    term = term_of(method)
    if term is not None:
        add_term(trainer, term)
    return trainer


def _save(trainer: Any, folder: Path, save: Callable[[], None]) -> None:
    with may_fail(folder / f"checkpoint-{trainer.state.global_step}"):
        save()


def _written(tuned: Any, base: Source) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors and the configuration that PEFT would write.

    Raises:
        ModelError: A tensor is not finite.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"`{name}` is not finite after training", hint="lower `learning_rate`", options=["learning_rate"]
            )
        tensors[name] = tensor.detach().float().cpu().numpy()
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in tuned.peft_config["default"].to_dict().items()
    }
    return tensors, {**config, **entries_of_base(base.ref), "inference_mode": True}
