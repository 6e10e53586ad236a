"""The model card of a fused checkpoint, with the metadata that the hub reads."""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoint import Source
from ..methods import METHODS
from ..methods.two_sided import title_under
from ..plan.plan import Plan
from .manifest import MANIFEST, Manifest


def _model_name(model: Source) -> str:
    # An adapter is read through its base, whose configuration says nothing of the adapter.
    config = model.config if model.folder == model.path and model.ref.repository is None else None
    recorded = (config or {}).get("_name_or_path")
    return recorded if isinstance(recorded, str) and recorded and not Path(recorded).is_absolute() else model.ref.name


def model_card(plan: Plan, manifest: Manifest, name: str) -> str:
    """Return the text of `README.md`."""
    models = (plan.base, *plan.tuned)
    inputs = [_model_name(model) for model in models]
    # The hub knows a base by its name alone; readers want the revision too.
    told = [str(m.ref) if m.ref.repository else name for m, name in zip(models, inputs, strict=True)]
    rows = dict(sorted(manifest.options.items()))
    for key, value in (manifest.settings.get("protection") or {}).items():
        rows[f"protection: {key}"] = value
    options = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    names = "\n".join(f"- {json.dumps(found)}" for found in dict.fromkeys(inputs))
    tuned = ", ".join(f"`{found}`" for found in told[1:])
    merged = f"`{told[0]}`" + (f" and its fine-tune {tuned}" if tuned else "")
    method = METHODS.get(manifest.method, type(plan.method))  # one that a program brings is in no list
    title = title_under(method, protects=manifest.settings.get("protection") is not None)
    return f"""---
base_model:
{names}
library_name: transformers
tags:
- merge
- sculpt
---
# {name}

{merged}, fused by **{title}** ({method.source}) with
[sculpt](https://pypi.org/project/checkpoint-sculpt/) {manifest.versions.get("sculpt")}. No training was involved.

| option | value |
|---|---|
{options}
| seed | {manifest.settings.get("seed")} |

{len(manifest.fused)} of {len(manifest.tensors)} tensors were fused. {manifest.told_sparsity()}.

What was done to each tensor, with digests of every input file, is in `{MANIFEST}`.
"""
