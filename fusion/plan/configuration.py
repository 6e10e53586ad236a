"""What the output's `config.json` and `generation_config.json` say: the chosen side's, in line with what is planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Source, TensorInfo
from ..checkpoint.json_file import read_json
from ..checkpoint.quantised import codes_in
from ..checkpoint.special_tokens import TokenIds, own_tokens, unsaid_end
from ..dtypes import DTYPES
from ..file_kinds import CONFIG, GENERATION_CONFIG
from ..names import config_values, is_vocabulary
from .plan import Plan

Reshape = Callable[[Mapping[str, Any]], dict[str, Any]]
DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The configuration files of an output.

    Attributes:
        files: By name, the content; none of a file that the chosen side has not.
        rewritten: Names of those that are not as the chosen side has them.
        notes: What was changed that somebody should know.
    """

    files: Mapping[str, Mapping[str, Any]]
    rewritten: frozenset[str]
    notes: tuple[str, ...]

    def with_codes(self, said: Mapping[str, Any] | None) -> Configuration:
        """Return the files where `config.json` says how weights are stored as codes; as they are where none are."""
        if said is None or CONFIG not in self.files:
            return self
        files = {**self.files, CONFIG: {**self.files[CONFIG], "quantization_config": dict(said)}}
        return replace(self, files=files, rewritten=self.rewritten | {CONFIG})


def configuration(
    plan: Plan, *, dtype: str | None = None, reshape: Reshape = dict, tokens: TokenIds | None = None
) -> Configuration:
    """Return the content of the output's configuration files.

    Args:
        dtype: torch name of the dtype that all floats are cast to, or None.
        reshape: Makes the output's configuration of the copied one, where layers were moved.
        tokens: What the ids of special tokens become, where the output's tokenizer is not the chosen side's.
    """
    source, notes = plan.config_from, []
    copied = {name: _content(source, name) for name in (CONFIG, GENERATION_CONFIG)}
    tokens = tokens or own_tokens(source)
    files: dict[str, dict[str, Any]] = {}
    if source.config is not None:
        config = _with_rows(reshape(source.config), plan)
        written = tensors_of(plan)
        main = _main_dtype(written.values())
        if dtype is not None or main != _main_dtype(source.tensors.values()):
            config = _with_dtype(config, dtype or main)
        if config.get("quantization_config") and next(codes_in(written, config), None) is None:
            del config["quantization_config"]
            notes.append(f"`quantization_config` of `{source.ref}` is left out: the weights are not quantised")
        files[CONFIG] = config if tokens is None else tokens.moved_in(config)
    generation = copied[GENERATION_CONFIG]
    if generation is not None:
        files[GENERATION_CONFIG] = generation if tokens is None else tokens.moved_in(generation)
    unsaid = unsaid_end(source, files.values()) if tokens is None else None
    notes += [unsaid] if unsaid is not None else []
    rewritten = frozenset(name for name, content in files.items() if content != copied[name])
    return Configuration(files=files, rewritten=rewritten, notes=tuple(notes))


def tensors_of(plan: Plan) -> dict[str, TensorInfo]:
    """Return the tensors that will be written."""
    return {
        step.name: TensorInfo(name=step.name, dtype=step.dtype, stored=step.dtype, shape=step.shape, file=None)
        for step in plan.steps
    }


def _content(source: Source, name: str) -> dict[str, Any] | None:
    """Return what a file that is copied says; a source's own configuration may say more."""
    file = source.companions().get(Path(name))
    content = None if file is None else read_json(file)
    return content if isinstance(content, dict) else None


def _main_dtype(tensors: Sequence[TensorInfo] | Any) -> str | None:
    """Return the torch name of the float dtype that most elements are stored in."""
    sizes: dict[str, int] = {}
    for info in tensors:
        if DTYPES[info.stored].fusible:
            sizes[info.stored] = sizes.get(info.stored, 0) + info.num_elements
    return DTYPES[max(sizes, key=lambda code: (sizes[code], code))].torch if sizes else None


def _with_dtype(content: Any, dtype: str | None) -> Any:
    """Name a dtype wherever a configuration names one: loaders go by it."""
    if isinstance(content, Mapping):
        return {k: dtype if k in DTYPE_KEYS else _with_dtype(v, dtype) for k, v in content.items()}
    return content


def _with_rows(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Say the number of rows that the vocabulary has, where one size of the configuration is no longer any's."""
    rows = {step.shape[0] for step in plan.steps if is_vocabulary(step.name) and len(step.shape) == 2}
    sizes = config_values(config, "vocab_size")
    if len(rows - sizes) == len(sizes - rows) == 1:
        (new,), (old,) = rows - sizes, sizes - rows
        return _replaced(config, old, new)
    return config


def _replaced(config: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    return {
        key: new
        if key == "vocab_size" and value == old
        else _replaced(value, old, new)
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }
