"""Where an output may lie, and what it may replace: asked by every command before its work begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError, OutputError, Way
from ...file_kinds import ADAPTER_RECORD, MANIFEST
from ...ref import Asked, find_model
from .scratch import clear_scratch
from .workspace import beside, refuse_foreign, repair

REPLACED = Way(option="overwrite", effect="replaces it")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of output.

    Attributes:
        name: What sentences call it.
        is_folder: Whether it is a folder, not a file.
        is_ours: Says of a file, or of a folder that holds something, whether sculpt wrote it as one of this kind.
        suffix: What the names of such files end in, if that has to be so.
        hint: What is said of something else that has the name.
    """

    name: str
    is_folder: bool
    is_ours: Callable[[Path], bool]
    suffix: str = ""
    hint: str | None = None

    def may_replace(self, output: Path) -> bool:
        """Return whether what has the output's name may be replaced."""
        if output.is_symlink() or not (output.is_dir() if self.is_folder else output.is_file()):
            return False
        return (self.is_folder and not any(output.iterdir())) or self.is_ours(output)


def folder_kind(name: str, mark: str) -> Kind:
    """Return the kind of folders that hold a file of a name."""
    return Kind(name=name, is_folder=True, is_ours=lambda folder: (folder / mark).is_file())


def file_kind(name: str, *beginnings: bytes) -> Kind:
    """Return the kind of files that begin in one of some ways."""

    def is_ours(file: Path) -> bool:
        with file.open("rb") as stream:
            return stream.read(max(map(len, beginnings))).startswith(beginnings)

    return Kind(name=name, is_folder=False, is_ours=is_ours)


def record_beside(file: Path) -> Path:
    """Return where the manifest of a single file of weights lies: beside it."""
    return file.with_name(f"{file.stem}.{MANIFEST}")


SWEEP_RECORD = "sweep.json"
CHECKPOINT = folder_kind("checkpoint", MANIFEST)
SINGLE_FILE = Kind(name="checkpoint", is_folder=False, is_ours=lambda file: record_beside(file).is_file())
ADAPTER = folder_kind("adapter", ADAPTER_RECORD)
SWEEP = folder_kind("sweep", SWEEP_RECORD)


def refuse_output(
    output: Path, inputs: Iterable[Asked], kind: Kind, *, overwrite: bool, option: str = "output"
) -> None:
    """Refuse an output that would touch an input, or replace what it must not; put right what a killed run left of it.

    Args:
        inputs: All that will be read: models, adapters, data, statistics.
        option: What names the output.

    Raises:
        OutputError: It lies at, in or around an input, or something has the name.
    """
    if kind.is_folder and output.suffix == ".safetensors":
        raise OutputError(f"the output `{output}` must be a folder", hint="leave out `.safetensors`")
    if not output.name.endswith(kind.suffix):
        raise OutputError(f"the output `{output}` must be a `{kind.suffix}` file, as every {kind.name} is")
    refuse_inputs(output, inputs)
    clear_scratch()
    repair(output)
    refuse_foreign(beside(output))
    if output.is_symlink():
        raise OutputError(f"the output `{output}` is a link to `{output.resolve()}`", hint="name that folder")
    if not output.exists():
        return
    if not (output.is_dir() or output.is_file()):
        raise OutputError(f"the output `{output}` is a device or a pipe")
    if output.is_dir() != kind.is_folder:
        is_not = "a file, not a folder" if kind.is_folder else "a folder, not a file"
        raise OutputError(f"the output `{output}` is {is_not}")
    if not overwrite:
        raise OutputError(f"`{output}` exists", ways=[REPLACED, Way(option=option, effect="names another")])
    if not kind.may_replace(output):
        article = "an" if kind.name[0] in "aeiou" else "a"
        refusal = f"`{output}` is not {article} {kind.name} that sculpt wrote, so it is not replaced"
        raise OutputError(refusal, hint=kind.hint)


def refuse_inputs(output: Path, inputs: Iterable[Asked]) -> None:
    """Raise OutputError where an output, or the folder in which it is put together, lies at, in or around an input."""
    found: list[tuple[Asked, Path]] = []
    for asked in inputs:
        with suppress(CheckpointError):  # it is nowhere, which is told when it is to be read
            ref = find_model(asked, fetch=False)
            found += [(asked if part is ref else part, part.path.resolve()) for part in ref.parts]
    for asked, source in found:
        place, workspace = output.resolve(), beside(output).resolve()
        if place == source or _same_file(place, source):
            raise OutputError(f"the output `{output}` is the input `{asked}`")
        if source in place.parents:
            raise OutputError(f"the output `{output}` lies inside the input `{asked}`")
        if place in source.parents:
            raise OutputError(f"the output `{output}` contains the input `{asked}`")
        if workspace == source or workspace in source.parents or _same_file(workspace, source):
            raise OutputError(f"the output `{output}` would be written in `{workspace}`, where `{asked}` is")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
