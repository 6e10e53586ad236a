"""What sculpt wrote, whatever its kind: how it was made, and what it consists of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..checkpoint.output.guard import ADAPTER_RECORD, SWEEP_RECORD
from ..errors import CheckpointError, MethodError
from ..patch.contents import FILE
from ..patch.file import PatchFile, is_patch
from ..record.adapter import read_adapter_record
from ..record.manifest import MANIFEST, Manifest, sides_of

CARD, TENSOR = "README.md", "tensor "  # a tensor of a patch, beside names of files


@dataclass(frozen=True, kw_only=True)
class Made:
    """An output of sculpt.

    Attributes:
        place: The folder, or the file of a patch.
        command: The command line that made it, or None where none did.
        why_no_command: What did, in a sentence.
        manifest: Of a checkpoint, or of the one that a patch holds; None where there is none.
        inputs: What it was made of, by role, as a fingerprint.
        files: What it consists of, by name, as a digest.
    """

    place: Path
    command: str | None
    why_no_command: str
    manifest: Manifest | None
    inputs: Mapping[str, str]
    files: Mapping[str, str]

    def recipe_source(self) -> Manifest:
        """Return the manifest that a recipe can be made of.

        Raises:
            MethodError: There is none.
        """
        if self.manifest is not None:
            return self.manifest
        how = f"`{self.command}` made it" if self.command else self.why_no_command
        hint = "`sculpt rerun` makes it again by this command" if self.command else None
        raise MethodError(f"`{self.place}` has no recipe: {how}", hint=hint)

    def refuse_unrepeatable(self) -> None:
        """Refuse what its recipe does not make again.

        Raises:
            MethodError: It is a patch by `pack`, it was merged by a recipe file, or statistics came out of memory.
        """
        if self.place.is_file():
            raise MethodError(
                f"`{self.place}` has no command: {self.why_no_command}", hint="pack the same two models again"
            )
        manifest = self.recipe_source()
        if manifest.settings.get("recipe"):
            raise MethodError(
                f"`{self.place}` was merged from Python by a recipe file", hint="`sculpt merge` runs that file again"
            )
        for side in ("target", "general"):
            found = sides_of(manifest.curvature or {}, side) or [manifest.curvature or {}]
            if any(one.get("source") == "given in memory" for one in found):
                raise MethodError(
                    f"`{self.place}` was made with statistics in memory, which its manifest does not hold"
                )

    def told_size(self) -> str:
        """Return what was compared, for a sentence."""
        if self.place.is_file():
            return f"{len([name for name in self.files if name.startswith(TENSOR)])} tensors"
        return f"{len(self.files)} files"

    def first_difference(self, other: Made) -> str | None:
        """Return what tells another output apart from this one, or None; cards differ where the names do."""
        if self.inputs != other.inputs:
            return "it was made of other models"
        skipped = set() if self.place.name == other.place.name else {CARD}
        names = sorted(self.files.keys() | other.files.keys())
        differs = [name for name in names if name not in skipped and self.files.get(name) != other.files.get(name)]
        return f"`{differs[0]}` differs" if differs else None


def made_at(path: Path) -> Made:
    """Return what lies at a path: an output's folder, its manifest, or a patch.

    Raises:
        CheckpointError: It is no output of sculpt, or damaged.
    """
    if path.is_file() and is_patch(path):
        return _patch(path)
    folder = (path.parent if path.is_file() else path).resolve()
    if (folder / SWEEP_RECORD).is_file():
        folder = folder / "fused"
    if (folder / ADAPTER_RECORD).is_file():
        return _adapter(folder)
    manifest = Manifest.read(folder)
    return Made(
        place=folder,
        command=manifest.command,
        why_no_command="it was made from Python",
        manifest=manifest,
        inputs=_inputs(manifest),
        files={record.name: record.digest for record in (*manifest.outputs, *manifest.companions)},
    )


def _inputs(manifest: Manifest) -> dict[str, str]:
    return {f"{k} {record.role}": record.fingerprint for k, record in enumerate(manifest.inputs)}


def _adapter(folder: Path) -> Made:
    record, files = read_adapter_record(folder)
    base = record.get("base")
    return Made(
        place=folder,
        command=record.get("command"),
        why_no_command=f"`{record.get('made by')}` made it from Python, or in an older version of sculpt",
        manifest=None,
        inputs={"base": str(base.get("fingerprint"))} if isinstance(base, dict) else {},
        files={file.name: file.digest for file in files},
    )


def _patch(path: Path) -> Made:
    """Return what a patch says of itself; what `pack` wrote has no command, and the manifest of the model it holds."""
    opened = PatchFile(path)
    contents, manifest = opened.contents, None
    entry = contents.files.get(MANIFEST)
    if entry is not None and entry.stored:
        with TemporaryDirectory() as scratch:
            (Path(scratch) / MANIFEST).write_bytes(b"".join(opened.stored(FILE, MANIFEST, entry)))
            try:
                manifest = Manifest.read(Path(scratch))
            except CheckpointError as error:
                raise CheckpointError(f"the manifest in `{path}` cannot be read: {error.message}") from error
    is_packed = contents.made_by == "pack"
    return Made(
        place=path.resolve(),
        command=None if is_packed or manifest is None else manifest.command,
        why_no_command="`sculpt pack` made it of two models" if is_packed else "it was made from Python",
        manifest=manifest,
        inputs={} if manifest is None else _inputs(manifest),
        files={
            **{name: entry.digest for name, entry in contents.files.items() if name != MANIFEST},
            **{f"{TENSOR}{name}": json.dumps([entry.seen, entry.code]) for name, entry in contents.tensors.items()},
        },
    )
