"""What others read of a finished output: a bill of materials and a statement of provenance, by sha256.

CycloneDX 1.6 (https://cyclonedx.org) and in-toto's Statement v1 with SLSA's provenance v1 (https://slsa.dev). Both are
functions of the folder: no time, no machine; whoever has the folder can make them again and compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..file_kinds import MANIFEST, PROVENANCE, SBOM, TENSORS
from .files import file_digest
from .manifest import CheckpointRecord, Manifest

HOME = "https://pypi.org/project/checkpoint-sculpt/"


def statements(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return the text of each statement by its file's name; every file of the folder is read for it."""
    own = [name for name in (MANIFEST, TENSORS) if (folder / name).is_file()]
    names = [*own, *(record.name for record in (*manifest.outputs, *manifest.companions))]
    digests = {own: file_digest(folder / own, "sha256").partition(":")[2] for own in sorted(names)}
    found = {SBOM: _bill(manifest, digests), PROVENANCE: _provenance(manifest, digests)}
    return {file: json.dumps(content, indent=1, sort_keys=True) + "\n" for file, content in found.items()}


def _bill(manifest: Manifest, digests: Mapping[str, str]) -> dict[str, Any]:
    files = [
        {"type": "file", "bom-ref": f"file:{own}", "name": own, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for own, digest in digests.items()
    ]
    libraries = [
        {"type": "library", "bom-ref": f"pkg:pypi/{own}@{version}", "name": own, "version": version}
        | ({"purl": f"pkg:pypi/{own}@{version}"} if own != "python" else {})
        for own, version in sorted(manifest.versions.items())
        if version and own != "sculpt"
    ]
    ancestors = [
        {"type": "machine-learning-model", "bom-ref": f"input:{record.role}", "name": record.name}
        for record in manifest.inputs
    ]
    tool = {"type": "application", "name": "checkpoint-sculpt", "version": manifest.versions.get("sculpt") or "unknown"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{manifest.inputs[-1].name}, {manifest.method}",
                "pedigree": {"ancestors": ancestors},
            },
            "tools": {"components": [tool]},
        },
        "components": [*files, *libraries],
    }


def _provenance(manifest: Manifest, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": own, "digest": {"sha256": digest}} for own, digest in digests.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{HOME}#manifest",
                "externalParameters": {
                    "command": manifest.command,
                    "method": manifest.method,
                    "options": dict(manifest.options),
                    "settings": dict(manifest.settings),
                    "curvature": manifest.curvature,
                },
                "resolvedDependencies": [found for record in manifest.inputs for found in _dependencies(record)],
            },
            "runDetails": {"builder": {"id": HOME, "version": dict(manifest.versions)}},
        },
    }


def _dependencies(record: CheckpointRecord) -> list[dict[str, Any]]:
    found = []
    for file in record.files:
        algorithm, _, digest = file.digest.partition(":")
        found.append({"name": f"{record.role}: {record.name}/{file.name}", "digest": {algorithm: digest}})
    return found
