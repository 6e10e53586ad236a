"""What the hub is to know of an output, as far as its inputs' own cards and configurations say it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import Source

HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
HEAD = re.compile(r"---\s*\n(.*?)\n---\s*\n", re.DOTALL)
# What a class of transformers is for, by the end of its name; the hub's words.
TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "ForImageClassification": "image-classification",
}


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known.

    Attributes:
        names: What each model is called: by its name on the hub if that is known.
        on_hub: Of these, those that are names on the hub.
        task: In the hub's words, or None.
        licences: Of the inputs, those that their cards name, each once; the fine-tunes' first.
        languages: Of the first that names any.
    """

    names: tuple[str, ...]
    on_hub: tuple[str, ...]
    task: str | None
    licences: tuple[str, ...]
    languages: tuple[str, ...]


def about(models: Sequence[Source], config: Mapping[str, Any] | None) -> About:
    """Return what is known of an output of these models, the base first."""
    heads = [_head(model) for model in models]
    found = [name_of(model) for model in models]
    if not HUB_NAME.fullmatch(found[0]):  # a fine-tune's card may know its base
        named = next((_texts(head.get("base_model")) for head in heads[1:] if head.get("base_model")), ())
        found[0] = named[0] if len(named) == 1 and HUB_NAME.fullmatch(named[0]) else found[0]
    order = [*heads[1:], heads[0]]
    return About(
        names=tuple(found),
        on_hub=tuple(dict.fromkeys(name for name in found if HUB_NAME.fullmatch(name))),
        task=next((text for head in order for text in _texts(head.get("pipeline_tag"))), None) or _task(config),
        licences=tuple(dict.fromkeys(text for head in order for text in _texts(head.get("license")))),
        languages=next((texts for head in order if (texts := _texts(head.get("language")))), ()),
    )


def name_of(model: Source) -> str:
    """Return a model's name on the hub as far as it is known, else its folder's own."""
    if model.ref.repository is not None:
        return model.ref.name
    cached = next((IN_CACHE.fullmatch(part) for part in model.path.resolve().parts if IN_CACHE.fullmatch(part)), None)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    # An adapter is read through its base, whose configuration says nothing of the adapter.
    recorded = (model.config or {}).get("_name_or_path") if model.folder == model.path else None
    is_name = isinstance(recorded, str) and recorded and not Path(recorded).is_absolute()
    return str(recorded) if is_name else model.ref.name


def _task(config: Mapping[str, Any] | None) -> str | None:
    classes = _texts((config or {}).get("architectures"))
    if any(name.endswith("ForConditionalGeneration") for name in classes):
        return "image-text-to-text" if "vision_config" in (config or {}) else None
    return next((task for name in classes for end, task in TASKS.items() if name.endswith(end)), None)


def _head(model: Source) -> Mapping[str, Any]:
    """Return the metadata of a model's own card, if it has one that can be read."""
    try:
        text = (model.path / "README.md").read_text(encoding="utf-8")
        found = HEAD.match(text)
        content = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item)
