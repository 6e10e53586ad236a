"""What a reader of a report asks first: was the base protected, what of the task was kept, what was forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..fusion.record.manifest import Manifest, sides_of
from ..fusion.run.calibration import GENERAL
from .scored import ScoredModel

UNKNOWN = "not measured; `sculpt eval` with a suite measures it"


def verdict(manifest: Manifest, name: str, scored: Sequence[ScoredModel]) -> list[tuple[str, str]]:
    """Return three answers, each after what it is about.

    Args:
        name: Of the model.
        scored: It, its base and its fine-tune, as far as they were scored.
    """
    base, tuned, fused = _roles(manifest, name, scored)
    return [
        ("protected", _protected(manifest)),
        ("kept of the task", _kept(tuned, fused, manifest.moved or {})),
        ("forgotten of the base", _forgotten(base, tuned, fused, manifest.moved or {})),
    ]


def _roles(
    manifest: Manifest, name: str, scored: Sequence[ScoredModel]
) -> tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float]]:
    """Return the measures of base, fine-tune and model on one suite: sweeps and gates call them so, `eval` by folder.

    A sweep may have picked another model than this one, whose scores are then none of this one's.
    """
    inputs = {record.role: Path(record.name).name for record in manifest.inputs}
    called = {"base": inputs.get("base"), "tuned": inputs.get("tuned"), "fused": name}
    own = [one for one in scored if one.picked is None or _is_made_by(manifest, one.picked)]

    def of(role: str, among: Sequence[ScoredModel]) -> ScoredModel | None:
        by_role = [one for one in among if one.role == role]
        by_name = [one for one in among if not one.role and Path(one.name).name in (role, called[role])]
        return next(iter([*by_role[-1:], *by_name[-1:]]), None)

    fused = of("fused", own)
    found = [of(role, [one for one in own if fused is None or one.suite == fused.suite]) for role in ("base", "tuned")]
    base, tuned = ({} if one is None else one.measures for one in found)
    return base, tuned, {} if fused is None else fused.measures


def _is_made_by(manifest: Manifest, point: Mapping[str, Any]) -> bool:
    """Return whether a point of a sweep is what a model was made by."""
    made_by = (manifest.method, manifest.settings.get("protection"))
    same_options = point.get("blocks") is not None or point.get("options") == manifest.options
    return made_by == (point.get("method"), point.get("protection")) and same_options


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
