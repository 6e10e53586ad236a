"""What sculpt wrote, whatever its kind: how it was made, and what it consists of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..checkpoint.output.guard import SWEEP_RECORD, record_beside
from ..errors import CheckpointError, MethodError
from ..file_kinds import ADAPTER_RECORD, MANIFEST
from ..patch.contents import FILE
from ..patch.file import PatchFile, is_patch
from ..record.adapter import read_adapter_record
from ..record.manifest import ASKED, Manifest, sides_of

CARD, TENSOR = "README.md", "tensor "  # a tensor of a patch, beside names of files
WEIGHTS = "weights of one file"


@dataclass(frozen=True, kw_only=True)
class Made:
    """An output of sculpt.

    Attributes:
        place: The folder, or the file of a patch or of weights.
        command: The command line that made it, or None where none did.
        why_no_command: What did, in a sentence.
        manifest: Of a checkpoint, or of the one that a patch holds; None where there is none.
        inputs: What it was made of, by role, as a fingerprint.
        files: What it consists of, by name, as a digest; of a single file of weights under `WEIGHTS`.
        is_patch: Whether it is a patch.
    """

    place: Path
    command: str | None
    why_no_command: str
    manifest: Manifest | None
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    is_patch: bool = False

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
            MethodError: It is a patch by `pack`, it was merged by a recipe file, statistics came out of memory,
                or an earlier version wrote its manifest.
        """
        if self.is_patch:
            raise MethodError(
                f"`{self.place}` has no command: {self.why_no_command}", hint="pack the same two models again"
            )
        manifest = self.recipe_source()
        if manifest.settings.get("recipe"):
            raise MethodError(
                f"`{self.place}` was merged from Python by a recipe file", hint="`sculpt merge` runs that file again"
            )
        if manifest.curvature is not None and ASKED not in manifest.curvature:
            raise MethodError(
                f"the manifest of `{self.place}` does not say what its calibration was asked for, as an earlier sculpt "
                "wrote it"
            )
        for side in ("target", "general"):
            found = sides_of(manifest.curvature or {}, side) or [manifest.curvature or {}]
            if any(one.get("source") == "given in memory" for one in found):
                raise MethodError(
                    f"`{self.place}` was made with statistics in memory, which its manifest does not hold"
                )
            measured = [one for one in found if "seed" in one and "file" not in one]
            if any(one["seed"] != manifest.settings.get("seed") for one in measured):
                raise MethodError(
                    f"`{self.place}` was made with another seed for its samples than for its masks, which no recipe has"
                )

    def told_size(self) -> str:
        """Return what was compared, for a sentence."""
        if self.is_patch:
            return f"{len([name for name in self.files if name.startswith(TENSOR)])} tensors"
        if WEIGHTS in self.files and self.manifest is not None:
            return f"{len(self.manifest.tensors)} tensors"
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
    """Return what lies at a path: an output's folder, its manifest, a patch, or a single file of weights.

    Raises:
        CheckpointError: It is no output of sculpt, or damaged.
    """
    if path.is_file() and is_patch(path):
        return _patch(path)
    if path.is_file() and (file := _single_file(path)) is not None:
        return _of_manifest(Manifest.read(file), file.resolve())
    folder = (path.parent if path.is_file() else path).resolve()
    if (folder / SWEEP_RECORD).is_file():
        folder = folder / "fused"
    if (folder / ADAPTER_RECORD).is_file():
        return _adapter(folder)
    return _of_manifest(Manifest.read(folder), folder)


def _single_file(path: Path) -> Path | None:
    """Return the file of weights that lies at a path, or whose manifest does; None of anything else."""
    file = path.with_name(path.name.removesuffix(f".{MANIFEST}") + ".safetensors") if _is_beside(path) else path
    return file if record_beside(file).is_file() else None


def _is_beside(path: Path) -> bool:
    return path.name.endswith(f".{MANIFEST}")


def _of_manifest(manifest: Manifest, place: Path) -> Made:
    files = {record.name: record.digest for record in (*manifest.outputs, *manifest.companions)}
    return Made(
        place=place,
        command=manifest.command,
        why_no_command="it was made from Python",
        manifest=manifest,
        inputs=_inputs(manifest),
        files={WEIGHTS: manifest.outputs[0].digest} if place.is_file() else files,
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
        is_patch=True,
        inputs={} if manifest is None else _inputs(manifest),
        files={
            **{name: entry.digest for name, entry in contents.files.items() if name != MANIFEST},
            **{f"{TENSOR}{name}": json.dumps([entry.seen, entry.code]) for name, entry in contents.tensors.items()},
        },
    )
