"""What a reader of a report asks first: was the base protected, what of the task was kept, what was forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..fusion.record.manifest import Manifest, sides_of
from ..fusion.run.calibration import GENERAL

UNKNOWN = "not measured; `sculpt eval` with a suite measures it"


def verdict(manifest: Manifest, name: str, scores: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """Return three answers, each after what it is about.

    Args:
        name: Of the model.
        scores: By model, its measures.
    """
    base, tuned, fused = _roles(manifest, name, scores)
    return [
        ("protected", _protected(manifest)),
        ("kept of the task", _kept(tuned, fused, manifest.moved or {})),
        ("forgotten of the base", _forgotten(base, tuned, fused, manifest.moved or {})),
    ]


def _roles(
    manifest: Manifest, name: str, scores: Mapping[str, Mapping[str, float]]
) -> tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float]]:
    """Return the measures of the base, the fine-tune and the model: sweeps and gates call them so, `eval` by folder."""
    found: dict[str, Mapping[str, float]] = {Path(model).name: own for model, own in scores.items()}
    inputs = {record.role: Path(record.name).name for record in manifest.inputs}

    def of(role: str, called: str) -> Mapping[str, float]:
        return found.get(role) or found.get(called) or {}

    return of("base", inputs.get("base", "")), of("tuned", inputs.get("tuned", "")), of("fused", name)


def _protected(manifest: Manifest) -> str:
    protection = manifest.settings.get("protection")
    if protection is None:
        return "no: the base was not protected"
    sides = [
        "the general set that ships" if side.get("data") == GENERAL else str(side.get("data", "statistics"))
        for side in sides_of(manifest.curvature or {}, "general")
    ]
    weight = protection.get("weight")
    return f"yes, on {' and '.join(sides) or 'statistics'}, λ {'by default' if weight is None else f'= {weight:g}'}"


def _kept(tuned: Mapping[str, float], fused: Mapping[str, float], moved: Mapping[str, Any]) -> str:
    parts = list(_by_scores(tuned, fused)) if "target" in fused else []
    gain = moved.get("gain") or {}
    if gain.get("kept") is not None:
        parts.append(f"{gain['kept']:.0%} of what the fine-tune gained in loss, on {gain['rows']} rows")
    return "; ".join(parts) or UNKNOWN


def _by_scores(tuned: Mapping[str, float], fused: Mapping[str, float]) -> Iterator[str]:
    own, before = fused["target"], tuned.get("target")
    share = f"{own / before:.0%} of the fine-tune's score: " if before else ""
    yield f"{share}{own:.1f} on the target tasks" + (f", the fine-tune {before:.1f}" if before is not None else "")


def _forgotten(
    base: Mapping[str, float], tuned: Mapping[str, float], fused: Mapping[str, float], moved: Mapping[str, Any]
) -> str:
    parts = []
    if "pretrained" in fused:
        known = [
            (what, own["pretrained"]) for what, own in (("base", base), ("fine-tune", tuned)) if "pretrained" in own
        ]
        lost = f"{fused['pretrained'] - known[0][1]:+.1f} points: " if known and known[0][0] == "base" else ""
        others = "".join(f", the {what} {score:.1f}" for what, score in known)
        parts.append(f"{lost}{fused['pretrained']:.1f} on the general tasks{others}")
    if kinds := moved.get("kinds"):
        same = sum(kind["same"] for kind in kinds) / len(kinds)
        parts.append(f"on general data {same:.0%} of its next tokens are the base's; `{kinds[0]['kind']}` moved most")
    return "; ".join(parts) or UNKNOWN
