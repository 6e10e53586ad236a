"""`hessian.safetensors`: one array a term, everything else in one sorted JSON string.

`name` is the first term of the tensor `name`, `name#1` its second, float64; `name#gram` its Σx·xᵀ, float32, stored once
for tensors that share it. The
header's one metadata key, `sculpt`, holds the format version, provenance, token counts and reasons; a header with
sorted keys that we write ourselves makes equal statistics equal bytes, which safetensors' own writer does not.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.checkpoint.json_file import checked
from ...fusion.checkpoint.output.guard import Kind
from ...fusion.checkpoint.output.workspace import told
from ...fusion.checkpoint.safetensors_file import SafetensorsFile
from ...fusion.errors import CheckpointError, CurvatureError
from ...fusion.names import is_number
from .provenance import Provenance

FORMAT = 3  # 2 had no tokens by expert; 1 had Σx·xᵀ in float64, once a tensor
KEY = "sculpt"
GRAM = "gram"


def _arrays(curvatures: Mapping[str, Curvature]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays to write, sorted, and whose Σx·xᵀ a tensor shares that has none of its own."""
    found: dict[str, np.ndarray] = {}
    shared: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name in sorted(curvatures):
        curvature = curvatures[name]
        for k, term in enumerate(curvature.terms):
            found[name if k == 0 else f"{name}#{k}"] = np.ascontiguousarray(term, dtype="<f8")
        if curvature.gram is not None:
            owner = owners.setdefault(id(curvature.gram), name)
            if owner != name:
                shared[name] = owner
            else:
                found[f"{name}#{GRAM}"] = np.ascontiguousarray(curvature.gram, dtype="<f4")
    return {key: found[key] for key in sorted(found)}, shared


def _header(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(about, sort_keys=True)}}
    start = 0
    for key, array in arrays.items():
        header[key] = {
            "dtype": "F32" if array.dtype == np.float32 else "F64",
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write(
    path: Path, curvatures: Mapping[str, Curvature], provenance: Provenance, why_missing: Mapping[str, str]
) -> None:
    """Write the file, at once to the name that is given."""
    arrays, shared = _arrays(curvatures)
    about = {
        "format": FORMAT,
        "provenance": dataclasses.asdict(provenance),
        "num_tokens": {name: curvature.num_tokens for name, curvature in curvatures.items()},
        "part_tokens": {name: c.part_tokens for name, c in curvatures.items() if c.part_tokens is not None},
        "shared": shared,
        "why_missing": dict(why_missing),
    }
    header = _header(about, arrays)
    with told(path), path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little"))
        stream.write(header)
        for array in arrays.values():
            stream.write(array.data)


def is_ours(file: Path) -> bool:
    """Return whether a file holds statistics that sculpt wrote."""
    try:
        return KEY in SafetensorsFile(file).metadata
    except CheckpointError:
        return False


STATISTICS = Kind(name="file of statistics", is_folder=False, is_ours=is_ours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _About:
    """What the header says beside the arrays: counts by tensor, whose Σx·xᵀ a tensor shares, why others have none."""

    provenance: Provenance
    num_tokens: Mapping[str, int]
    part_tokens: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]
    why_missing: Mapping[str, str]


def _about(path: Path, opened: SafetensorsFile) -> _About:
    refusal = CurvatureError(f"`{path}` holds no statistics of sculpt", hint="`sculpt calibrate` writes such files")
    try:
        about = json.loads(opened.metadata.get(KEY, ""))
    except (ValueError, RecursionError) as error:
        raise refusal from error
    if not isinstance(about, dict):
        raise refusal
    if about.get("format") != FORMAT:
        raise CurvatureError(f"`{path}` is of format {about.get('format')}; this version of sculpt reads {FORMAT}")
    try:
        return checked(_About, about)
    except CheckpointError as error:
        raise CurvatureError(f"`{path}` is malformed: {error.message}") from error


def _check(path: Path, key: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise CurvatureError(f"`{key}` in `{path}` holds NaN or infinity")
    if (array < 0).any():
        raise CurvatureError(f"`{key}` in `{path}` holds a negative sum of squares")


def read(path: Path) -> tuple[dict[str, Curvature], Provenance, dict[str, str]]:
    """Return the curvature in a file, checked, where it came from, and why tensors have none."""
    if not path.is_file():
        raise CurvatureError(f"`{path}` does not exist", hint="`sculpt calibrate` writes such files")
    try:
        opened = SafetensorsFile(path)
    except CheckpointError as error:
        raise CurvatureError(error.message) from error
    about = _about(path, opened)
    terms: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    grams: dict[str, np.ndarray] = {}
    for key, info in opened.tensors.items():
        name, _, suffix = key.partition("#")
        expected = "F32" if suffix == GRAM else "F64"
        if info.dtype != expected:
            raise CurvatureError(f"`{key}` in `{path}` is {info.dtype}, expected {expected}")
        array = opened.read(key).reshape(info.shape)
        if suffix != GRAM:  # gigabytes, which are looked at where they are used
            _check(path, key, array)
        if suffix == GRAM:
            grams[name] = array
        elif suffix == "" or is_number(suffix):
            terms[name][int(suffix or 0)] = array
        else:
            raise CurvatureError(f"`{key}` in `{path}` is not the name of a statistic")
    for name, owner in about.shared.items():
        if owner not in grams:
            raise CurvatureError(f"`{name}` in `{path}` shares a full Hessian that is not there")
        grams[name] = grams[owner]
    for name in terms:
        if sorted(terms[name]) != list(range(len(terms[name]))) or name not in about.num_tokens:
            raise CurvatureError(f"`{name}` in `{path}` lacks a term or its token count")
    curvatures = {
        name: Curvature(
            terms=tuple(found[k] for k in sorted(found)),
            num_tokens=about.num_tokens[name],
            gram=grams.get(name),
            part_tokens=about.part_tokens.get(name),
        )
        for name, found in terms.items()
    }
    return curvatures, about.provenance, dict(about.why_missing)
