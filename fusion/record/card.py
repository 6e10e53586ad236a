"""The model card of a fused checkpoint or of an adapter, with the metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ..file_kinds import MANIFEST
from ..methods import METHODS
from ..methods.named import options_told
from ..methods.two_sided import title_under
from ..plan.plan import Plan
from .about import HUB_NAME, About, about
from .manifest import Manifest
from .recipe import recipe_text

CITATION = """@software{sculpt,
  title = {sculpt: checkpoint surgery for fine-tuned models that forgot},
  url = {https://pypi.org/project/checkpoint-sculpt/}
}"""


def model_card(
    plan: Plan,
    manifest: Manifest,
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Return the text of `README.md`.

    Args:
        config: The output's own `config.json`.
        scores: By model, what it reached, in percent.
    """
    models = (plan.base, *plan.tuned)
    known = about(models, config)
    # The hub knows a base by its name alone; readers want the revision too.
    told = [str(m.ref) if m.ref.repository else name for m, name in zip(models, known.names, strict=True)]
    rows = options_told(dict(sorted(manifest.options.items())))
    rows += [(f"protection: {key}", value) for key, value in options_told(manifest.settings.get("protection") or {})]
    options = "\n".join(f"| {key} | {value} |" for key, value in rows)
    tuned = ", ".join(f"`{found}`" for found in told[1:])
    merged = f"`{told[0]}`" + (f" and its fine-tune {tuned}" if tuned else "")
    method = METHODS.get(manifest.method, type(plan.method))  # one that a program brings is in no list
    title = title_under(method, protects=manifest.settings.get("protection") is not None)
    parts = [
        f"# {name}",
        f"{merged}, fused by **{title}** ({method.source}) with\n"
        f"[sculpt](https://pypi.org/project/checkpoint-sculpt/) {manifest.versions.get('sculpt')}. "
        f"No training was involved.{_licences(known)}",
        _usage(name, known.task),
        _scores(scores),
        f"## How it was made\n\n{_fenced('sh', manifest.command)}{_fenced('yaml', recipe_text(manifest))}"
        f"| option | value |\n|---|---|\n{options}\n| seed | {manifest.settings.get('seed')} |",
        f"{len(manifest.fused)} of {len(manifest.tensors)} tensors were fused. {manifest.told_sparsity()}.",
        f"What was done to each tensor, with digests of every input file, is in `{MANIFEST}`.",
        f"## Citation\n\nThe method: {method.source}.\n\n{_fenced('bibtex', CITATION)}".rstrip(),
    ]
    return metadata(known, library="transformers", tags=("merge", "sculpt")) + "\n\n".join(filter(None, parts)) + "\n"


def adapter_card(name: str, record: Mapping[str, Any], base: str | None) -> str:
    """Return the text of an adapter's `README.md`.

    Args:
        record: How it was made, with `made by`.
        base: What it is over, as its configuration names it.
    """
    known = About(
        names=(base or "",),
        on_hub=(base,) if base and HUB_NAME.fullmatch(base) else (),
        task=None,
        licences=(),
        languages=(),
    )
    over = f" over `{base}`" if base else ""
    use = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base or "BASE"}"), "{name}")'
    )
    parts = [
        f"# {name}",
        f"A LoRA adapter{over}, made by `{record['made by']}` of [sculpt](https://pypi.org/project/checkpoint-sculpt/).",
        f"## Use\n\n{_fenced('python', use)}".rstrip(),
        "How it was made, with digests of its files, is in `sculpt-adapter.json`.",
        f"## Citation\n\n{_fenced('bibtex', CITATION)}".rstrip(),
    ]
    return metadata(known, library="peft", tags=("lora", "sculpt")) + "\n\n".join(parts) + "\n"


def metadata(known: About, *, library: str, tags: tuple[str, ...]) -> str:
    """Return the head of a card: what is known, and nothing that is not."""
    content: dict[str, Any] = {
        "base_model": list(known.on_hub),
        "language": list(known.languages),
        "library_name": library,
        "license": known.licences[0] if known.licences else None,
        "pipeline_tag": known.task,
        "tags": list(tags),
    }
    said = {key: value for key, value in content.items() if value not in (None, [])}
    return f"---\n{yaml.safe_dump(said, sort_keys=True, allow_unicode=True)}---\n"


def _licences(known: About) -> str:
    if not known.licences:
        return " The inputs name no licence; the licences of the inputs apply."
    others = ", ".join(known.licences[1:])
    return f" Other inputs are under other licences, which apply too: {others}." if others else ""


def _usage(name: str, task: str | None) -> str:
    call = f'pipeline("{task}", model="{name}")' if task else f'AutoModel.from_pretrained("{name}")'
    text = f"from transformers import {call.partition('(')[0].partition('.')[0]}\n\nmodel = {call}"
    return f"## Use\n\n{_fenced('python', text)}".rstrip()


def _scores(scores: Mapping[str, Mapping[str, float]] | None) -> str:
    if not scores:
        return ""
    measures = list(dict.fromkeys(measure for own in scores.values() for measure in own))
    lines = [f"| | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    for model, own in scores.items():
        lines.append(f"| {model} | {' | '.join(f'{own[m]:.1f}' if m in own else '' for m in measures)} |")
    return "## Scores\n\n" + "\n".join(lines)


def _fenced(language: str, text: str | None) -> str:
    return "" if not text else f"```{language}\n{text.rstrip()}\n```\n\n"
