"""What `adapter_config.json` of a PEFT folder says, and which adapters are refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from ...errors import CheckpointError
from ...file_kinds import ADAPTER_CONFIG
from ..json_file import read_json

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Kinds of LoRA whose merge is not W + s·B·A (or DoRA's), by the entry of the configuration that turns them on.
VARIANTS = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron LoRA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QA-LoRA",
    "velora_config": "VeLoRA",
}
# Ways to start that take something out of the base's weights, so the base is no longer what was trained on.
MATCH_SECONDS = 0.5  # a pattern that backtracks for longer than this was made to
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA adapter's configuration, names as in PEFT where they are clear.

    Attributes:
        rank, alpha: Where no pattern matches.
        rank_pattern, alpha_pattern: Regular expression to the value of the modules whose name ends in a match.
        fan_in_fan_out: Whether square linear weights are stored (d_in, d_out).
        target_parameters: Names, or ends of names, of parameters that are adapted without their module.
        task: Kind of head that it was trained with, such as `SEQ_CLS`; None where it does not say.
        token_rows: Rows of embeddings that were trained, by the name, or its end; `` is the input's embedding.
        exact: Rank and alpha of modules by their names, where each has its own.
        base_model: Where the adapter says its base lies: a folder, or a name on the hub with its revision.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    target_parameters: tuple[str, ...] = ()
    task: str | None = None
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    base_model: str | None = None
    exact: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, named without PEFT's own prefix."""
        if module in self.exact:
            return self.exact[module][0]
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scaling(self, module: str) -> float:
        """Return s: α/r, or α/√r for rank-stabilised LoRA."""
        rank = self.rank_of(module)
        if module in self.exact:
            return self.exact[module][1] / rank
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def rows_of(self, module: str) -> tuple[int, ...] | None:
        """Return the rows of an embedding that were trained, or None."""
        own = (rows for name, rows in self.token_rows.items() if not name or f".{module}".endswith(f".{name}"))
        return next(own, None)

    def targets(self, parameter: str) -> bool:
        """Return whether a parameter is adapted by name."""
        return any(parameter == name or parameter.endswith("." + name) for name in self.target_parameters)

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Return the configuration of an adapter folder.

        Raises:
            CheckpointError: It is malformed, or the adapter is of a kind that is not fused.
        """
        file = folder / ADAPTER_CONFIG
        content = read_json(file)
        if not isinstance(content, dict):
            raise CheckpointError(f"`{file}` is not a JSON object")
        _refuse_other_kinds(folder, content)
        try:
            found = cls(
                rank=int(content["r"]),
                alpha=float(content["lora_alpha"]),
                rank_pattern={key: int(value) for key, value in (content.get("rank_pattern") or {}).items()},
                alpha_pattern={key: float(value) for key, value in (content.get("alpha_pattern") or {}).items()},
                use_rslora=bool(content.get("use_rslora")),
                fan_in_fan_out=bool(content.get("fan_in_fan_out")),
                target_parameters=_names(content.get("target_parameters")),
                task=content.get("task_type"),
                token_rows=_token_rows(content.get("trainable_token_indices")),
                base_model="@".join(filter(None, map(content.get, ("base_model_name_or_path", "revision")))) or None,
            )
            for pattern in (*found.rank_pattern, *found.alpha_pattern):
                regex.compile(rf"(.*\.)?({pattern})$")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError, regex.error) as error:
            raise CheckpointError(f"`{file}` is malformed: {type(error).__name__} {error}") from error
        if min((found.rank, *found.rank_pattern.values())) < 1:
            raise CheckpointError(f"`{file}` has a rank below 1")
        return found


def _names(value: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(str(name) for name in value or ())


def _token_rows(value: Any) -> dict[str, tuple[int, ...]]:
    """Return the trained rows by module; PEFT takes a list for the input's embedding."""
    named = value if isinstance(value, Mapping) else {"": value} if value else {}
    return {str(name): tuple(map(int, rows)) for name, rows in named.items()}


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As `peft.utils.other.get_pattern_key`: the first pattern that matches the end of the name, whole parts only.
    for pattern, value in patterns.items():
        try:
            if regex.match(rf"(.*\.)?({pattern})$", module, timeout=MATCH_SECONDS):
                return value
        except TimeoutError as error:
            raise CheckpointError(
                f"the pattern `{pattern}` of an adapter takes too long to match `{module}`"
            ) from error
    return default


def _refuse_other_kinds(folder: Path, content: Mapping[str, Any]) -> None:
    kind = str(content.get("peft_type", "unknown")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"`{folder}` is an adapter of type {kind}; only LoRA and DoRA adapters can be fused",
            hint="merge it with PEFT, then fuse the merged checkpoint",
        )
    for key, name in VARIANTS.items():
        if content.get(key):
            raise CheckpointError(f"`{folder}` uses {name} (`{key}`), which is not fused")
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise CheckpointError(
            f"`{folder}` started from `{start}`, which takes a part out of the base's weights",
            hint="PEFT's `save_pretrained(path_initial_model_for_weight_conversion=…)` turns it into a plain LoRA",
        )


def is_adapter(path: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (path / ADAPTER_CONFIG).is_file()
