"""What a manifest says, as a recipe that `merge` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import yaml

from ..arithmetic.two_sided import Protection
from ..methods import METHODS
from ..plan.options import Policies
from .manifest import ASKED, Manifest


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
    return dict(about.get(ASKED) or {})
