"""Proof of what was done: versions, inputs with digests, options, and each tensor's figures."""

from __future__ import annotations

import json
import mmap
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import blake3
import xxhash

from ..checkpoint import Source
from ..checkpoint.companions import OWN_MARK
from ..checkpoint.json_file import read_json
from ..errors import CheckpointError
from ..plan.plan import Plan
from .records import TensorRecord

MANIFEST = OWN_MARK
FORMAT = 1
PIECE = 1 << 24

# What `xxh128sum`, `b3sum` and `sha256sum` print of the same file.
DIGESTS: dict[str, Callable[[], Any]] = {}


def _sha256() -> Any:
    import hashlib

    return hashlib.sha256()


DIGESTS.update({"xxh3-128": xxhash.xxh3_128, "blake3": blake3.blake3, "sha256": _sha256})


def file_digest(file: Path, algorithm: str) -> str:
    """Return `algorithm:hex` of a file's bytes."""
    digest = DIGESTS[algorithm]()
    with file.open("rb") as stream:
        if file.stat().st_size:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                for start in range(0, len(mapped), PIECE):
                    with memoryview(mapped) as view, view[start : start + PIECE] as piece:
                        digest.update(piece)
                    if hasattr(mapped, "madvise"):
                        mapped.madvise(mmap.MADV_DONTNEED, start, min(PIECE, len(mapped) - start))
    return f"{algorithm}:{digest.hexdigest()}"


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file: its name within its checkpoint, size and digest."""

    name: str
    nbytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One input checkpoint."""

    role: str
    path: str
    fingerprint: str
    files: tuple[FileRecord, ...]

    @classmethod
    def of(cls, role: str, checkpoint: Source, digests: Mapping[Path, str]) -> CheckpointRecord:
        """Describe an opened checkpoint."""
        return cls(
            role=role,
            path=str(checkpoint.ref),
            fingerprint=checkpoint.fingerprint,
            files=tuple(
                FileRecord(name=file.name, nbytes=file.stat().st_size, digest=digests[file])
                for file in checkpoint.all_files
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is needed to make the output again, and to check it.

    Attributes:
        command: The command line, or None when called as a library.
        settings: Seed, selection, policies and so on.
        curvature: Where the statistics came from, or None for H = I.
        outputs: The weight files that were written.
    """

    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    command: str | None
    inputs: tuple[CheckpointRecord, ...]
    curvature: Mapping[str, Any] | None
    outputs: tuple[FileRecord, ...]
    renamings: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str | None]
    tensors: tuple[TensorRecord, ...]

    @property
    def fused(self) -> tuple[TensorRecord, ...]:
        """The tensors that the method ran over."""
        return tuple(record for record in self.tensors if record.kept is not None)

    def realised_sparsity(self) -> float:
        """Return the fraction of all fused elements that was dropped or unchanged."""
        elements = sum(record.num_fused for record in self.fused)
        return 1 - sum(record.kept or 0 for record in self.fused) / elements if elements else 0.0

    def unchanged(self) -> float:
        """Return the fraction of all fused elements in which no tuned model differs from the base."""
        elements = sum(record.num_fused for record in self.fused)
        return sum(record.zero_deltas or 0 for record in self.fused) / elements if elements else 0.0

    def dropped(self) -> float:
        """Return the fraction of the elements in which a tuned model differs from the base that kept no delta."""
        changed = sum(record.num_fused - (record.zero_deltas or 0) for record in self.fused)
        return 1 - sum(record.kept or 0 for record in self.fused) / changed if changed else 0.0

    def told_sparsity(self, asked: str = "") -> str:
        """Return a sentence on what was dropped, told apart from what never changed.

        Args:
            asked: What was asked for, in parentheses behind the figure.
        """
        unchanged = self.unchanged()
        if unchanged == 1:
            return "No tuned model differs from the base in any of them"
        never = f"; {unchanged:.2%} of all elements never changed" if unchanged else ""
        num_tuned = len(self.inputs) - 1
        if num_tuned > 1:
            asked = asked and f"{asked[:-1]} of each model's deltas)"
            return (
                f"In {self.dropped():.2%} of the union of {num_tuned} models' changes no delta was kept{asked}{never}"
            )
        what = "the deltas that are not zero" if unchanged else "the deltas"
        return f"{self.dropped():.2%} of {what} were dropped{asked}{never}"

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as plain values."""
        return {
            "format": FORMAT,
            **{key: value for key, value in vars(self).items() if key not in ("tensors", "inputs", "outputs")},
            "inputs": [asdict(record) for record in self.inputs],
            "outputs": [asdict(record) for record in self.outputs],
            "realised_sparsity": self.realised_sparsity(),
            "unchanged": self.unchanged(),
            "dropped": self.dropped(),
            "tensors": [record.as_json() for record in self.tensors],
        }

    def write(self, folder: Path) -> None:
        """Write `sculpt-manifest.json`, keys sorted, a line a tensor: the same run gives the same bytes."""
        content = self.as_json()
        line = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
        tensors = ",\n  ".join(line(record) for record in content.pop("tensors"))
        head = json.dumps({**content, "tensors": []}, indent=1, sort_keys=True, ensure_ascii=False)
        before, empty, after = head.rpartition('"tensors": []')
        text = f"{before}{empty[:-1]}\n  {tensors}\n ]{after}\n" if tensors else head + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a fused checkpoint.

        Raises:
            CheckpointError: There is none, or it is malformed.
        """
        file = folder / MANIFEST
        if not file.is_file():
            raise CheckpointError(f"`{folder}` holds no `{MANIFEST}`", hint="only sculpt's own outputs have one")
        content = read_json(file)
        try:
            return cls(
                **{key: content[key] for key in ("method", "options", "settings", "command", "curvature", "versions")},
                inputs=tuple(
                    CheckpointRecord(**{**found, "files": tuple(FileRecord(**f) for f in found["files"])})
                    for found in content["inputs"]
                ),
                outputs=tuple(FileRecord(**found) for found in content["outputs"]),
                renamings=tuple(content["renamings"]),
                notes=tuple(content["notes"]),
                tensors=tuple(TensorRecord.from_json(found) for found in content["tensors"]),
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"`{file}` is malformed: {error}") from error


def make_manifest(
    plan: Plan,
    options: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    command: str | None,
    curvature: Mapping[str, Any] | None,
    digests: Mapping[Path, str],
    outputs: Sequence[FileRecord],
    records: Mapping[str, TensorRecord],
) -> Manifest:
    """Put together what a run was given and what it recorded."""
    roles = [
        "base",
        *(["tuned"] if len(plan.tuned) == 1 else [f"tuned {i + 1}" for i in range(len(plan.tuned))]),
    ]
    return Manifest(
        method=plan.method.name,
        options=options,
        settings=settings,
        command=command,
        inputs=tuple(
            CheckpointRecord.of(role, checkpoint, digests)
            for role, checkpoint in zip(roles, (plan.base, *plan.tuned), strict=True)
        ),
        curvature=curvature,
        outputs=tuple(outputs),
        renamings=tuple(
            f"{rule.base_prefix}* in the base is {rule.tuned_prefix}* in the tuned model ({rule.count} tensors)"
            for rule in plan.renamings
        ),
        notes=plan.notes,
        versions={
            "sculpt": installed_version("checkpoint-sculpt"),
            "numpy": installed_version("numpy"),
            "python": platform.python_version(),
        },
        tensors=tuple(records[step.name] for step in plan.steps),
    )
