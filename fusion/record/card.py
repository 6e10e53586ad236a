"""The model card of a fused checkpoint, with the metadata that the hub reads."""

from __future__ import annotations

import json
from pathlib import Path

from ..methods import METHODS
from ..plan.plan import Plan
from .manifest import MANIFEST, Manifest


def _model_name(path: Path, config: dict | None) -> str:
    recorded = (config or {}).get("_name_or_path")
    return (
        recorded if isinstance(recorded, str) and recorded and not Path(recorded).is_absolute() else path.resolve().name
    )


def model_card(plan: Plan, manifest: Manifest, name: str) -> str:
    """Return the text of `README.md`."""
    inputs = [
        _model_name(checkpoint.path, checkpoint.config if checkpoint.folder == checkpoint.path else None)
        for checkpoint in (plan.base, *plan.tuned)
    ]
    rows = dict(sorted(manifest.options.items()))
    for key, value in (manifest.settings.get("protection") or {}).items():
        rows[f"protection: {key}"] = value
    options = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    names = "\n".join(f"- {json.dumps(found)}" for found in dict.fromkeys(inputs))
    tuned = ", ".join(f"`{found}`" for found in inputs[1:])
    method = METHODS[manifest.method]
    return f"""---
base_model:
{names}
library_name: transformers
tags:
- merge
- sculpt
---
# {name}

`{inputs[0]}` and its fine-tune {tuned}, fused by **{method.title}** ({method.source}) with
[sculpt](https://pypi.org/project/checkpoint-sculpt/) {manifest.versions.get("sculpt")}. No training was involved.

| option | value |
|---|---|
{options}
| seed | {manifest.settings.get("seed")} |

{len(manifest.fused)} of {len(manifest.tensors)} tensors were fused; {manifest.realised_sparsity():.2%} of their
deltas are zero. What was done to each tensor, with digests of every input file, is in `{MANIFEST}`.
"""
