"""What a manifest says, as a recipe that `merge` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import yaml

from ..arithmetic.two_sided import Protection
from ..methods import METHODS
from ..plan.options import Policies
from .manifest import Manifest, sides_of

GENERAL, SHIPPED = "general", "default"  # as data, and as what protects: `run/calibration.py`


def recipe_of(manifest: Manifest) -> dict[str, Any]:
    """Return the recipe of an output: the one that it was made by, or one that says the same.

    Models are called by their names on the hub or of their folders, and so are samples.
    """
    settings = manifest.settings
    written = (settings.get("recipe") or {}).get("content")
    if written and "method" in written | {"merge_method": None} and (written.get("models") or written.get("slices")):
        return dict(written)
    method = METHODS.get(manifest.method)
    defaults = {} if method is None else {field.name: field.default for field in fields(method)}
    options = {key: _plain(value) for key, value in manifest.options.items() if _plain(defaults.get(key)) != value}
    base, *tuned = [record.name for record in manifest.inputs]
    selection = settings.get("selection") or {}
    found: dict[str, Any] = {
        "method": manifest.method,
        "base": base,
        "models": tuned,
        "options": {key: _plain(value) for key, value in options.items() if value is not None},
        "include": _plain(selection.get("include")),
        "exclude": _plain(selection.get("exclude")),
        "rest": selection.get("rest"),
        "tokenizer": settings.get("tokenizer"),
        "dtype": settings.get("dtype"),
        "max_shard_size": settings.get("max_shard_bytes") and str(settings["max_shard_bytes"]),
        "output_format": settings.get("output_format"),
        "rounding": settings.get("rounding"),
        "config_from": settings.get("config_from"),
        "seed": settings.get("seed"),
        "policies": _others(settings.get("policies"), asdict(Policies())),
        "calibration": _calibration(manifest),
        "protection": _others(settings.get("protection"), asdict(Protection())),
    }
    usual = {"rest": "base", "output_format": "plain", "rounding": "auto", "config_from": "tuned", "seed": 0}
    return {key: value for key, value in found.items() if value not in (None, [], {}) and usual.get(key) != value}


def recipe_text(manifest: Manifest) -> str:
    """Return the recipe as YAML."""
    return yaml.safe_dump(recipe_of(manifest), sort_keys=False, allow_unicode=True, default_flow_style=None)


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _others(said: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not as it is by default."""
    return {key: _plain(value) for key, value in (said or {}).items() if _plain(defaults.get(key)) != _plain(value)}


def _calibration(manifest: Manifest) -> dict[str, Any]:
    method, about = METHODS.get(manifest.method), manifest.curvature
    if about is None:
        return {} if method is None or not method.uses_curvature else {"enabled": False}
    targets, sides = sides_of(about, "target") or [about], sides_of(about, "general")
    names = [one.get("data") for one in targets]
    found: dict[str, Any] = {}
    if any(name not in (None, "delta") for name in names):
        found["data"] = names if len(names) > 1 else names[0]
        found |= {key: targets[0][at] for key, at in (("samples", "num_samples"), ("max_length", "max_length"))}
    if sides:
        of = [_name_of(side, alone=len(sides) == 1) for side in sides]
        weights = [side.get("weight", 1.0) for side in sides]
        several = [name if weight == 1 else f"{name}:{weight:g}" for name, weight in zip(of, weights, strict=True)]
        found["protect"] = several if len(several) > 1 else several[0]
        if of == [SHIPPED] and len(kinds := sides[0].get("kinds") or ()) == 1:
            found["protect_kinds"] = [kinds[0][0]]
    return found


def _name_of(side: Mapping[str, Any], *, alone: bool) -> Any:
    """Return what a general side is given as: the set that ships, or one kind of it beside others, else the data."""
    if side.get("data") != GENERAL:
        return side.get("data")
    kinds = side.get("kinds") or ()
    return f"{SHIPPED}/{kinds[0][0]}" if len(kinds) == 1 and not alone else SHIPPED
