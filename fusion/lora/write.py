"""An adapter folder that PEFT loads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save

from ..checkpoint.adapter.config import ADAPTER_WEIGHTS
from ..checkpoint.output.guard import ADAPTER
from ..checkpoint.output.workspace import Workspace, told
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_CONFIG, ADAPTER_RECORD
from ..record.adapter import adapter_record
from ..record.card import adapter_card
from ..ref import ModelRef
from .modules import Factors, Module

T = TypeVar("T")


def tensors_of(module: Module, factors: Factors) -> dict[str, np.ndarray]:
    """Return a module's tensors under the names that PEFT gives them."""
    a = factors.a.reshape(-1, *factors.a.shape[2:])
    b = factors.b.reshape(len(factors.b), -1, *factors.b.shape[3:])
    names = ("lora_embedding_A", "lora_embedding_B") if module.embedding else ("lora_A.weight", "lora_B.weight")
    found = {f"{module.key}.{name}": tensor for name, tensor in zip(names, (a, b), strict=True)}
    if factors.bias is not None:
        found[f"{module.key}.lora_B.bias"] = factors.bias
    return found


def entries_of_base(base: ModelRef) -> dict[str, str]:
    """Return what `adapter_config.json` says of the base: as it was asked for, not where a cache holds it.

    Raises:
        CheckpointError: It is a patch over its base, whose name PEFT could not load.
    """
    if base.base is not None:
        raise CheckpointError(
            f"`{base}` is a patch over its base, and an adapter names one folder as its base",
            hint="`sculpt apply` writes that folder; then give it as the base",
        )
    revision = {"revision": base.revision} if base.revision else {}
    return {"base_model_name_or_path": base.repository or str(base), **revision}


def config_of(modules: Mapping[Module, int], **entries: Any) -> dict[str, Any]:
    """Return `adapter_config.json` of modules with their ranks; the scale of each is 1 (α = r)."""
    rank = max(modules.values(), default=1)
    others = {
        re.escape(module.pattern): r for module, r in sorted(modules.items(), key=lambda m: m[0].key) if r != rank
    }
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(module.name for module in modules if not module.by_name),
        "lora_dropout": 0.0,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        **entries,
    }


def write_adapter(
    output: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    overwrite: bool,
    check: Callable[[Path], T] = lambda _: None,
) -> T:
    """Write the folder beside its name and rename it when whole; same content, same bytes.

    Args:
        check: Looks at the folder before it has the name; what it returns is returned.
    """
    with Workspace(output, made_by=str(record["made by"]).removeprefix("sculpt ")) as workspace:
        workspace.empty()
        return publish_adapter(workspace, tensors, config, record, overwrite=overwrite, check=check)


def publish_adapter(
    workspace: Workspace,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    overwrite: bool,
    check: Callable[[Path], T] = lambda _: None,
) -> T:
    """Write the folder in a workspace and give it the output's name."""
    with told(workspace.folder):
        fill_adapter(workspace.payload, workspace.output.name, tensors, config, record)
    found = check(workspace.payload)
    workspace.publish(ADAPTER.may_replace if overwrite else None)
    return found


def fill_adapter(
    folder: Path, name: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write an adapter's files into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    (folder / ADAPTER_WEIGHTS[0]).write_bytes(save(contiguous, metadata={"format": "pt"}))
    _write_json(folder / ADAPTER_CONFIG, config)
    card = adapter_card(name, record, config.get("base_model_name_or_path"))
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_json(folder / ADAPTER_RECORD, adapter_record(folder, record))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
