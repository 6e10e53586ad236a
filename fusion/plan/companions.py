"""What becomes of every file beside the models' weights: copied, rewritten or left out, and why."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..checkpoint import Source
from ..checkpoint.companions import Companion
from ..checkpoint.foreign import POINTER_BYTES, refuse_foreign_file
from ..checkpoint.json_file import read_json
from ..errors import os_error
from ..file_kinds import ADAPTER_CONFIG, CONFIG, TOKENIZER_CONFIG, kind_of
from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file, or a folder that is left as a whole, beside the weights of an input."""

    model: str
    name: str
    action: Literal["copied", "rewritten", "left out"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Companions:
    """The files that an output is shipped with.

    Attributes:
        files: Where each is copied from, by its name in the output.
        records: What becomes of each file of each model.
        notes: On those that may be part of a model.
    """

    files: Mapping[Path, Path]
    records: tuple[InputFile, ...]
    notes: tuple[str, ...]

    def of_file(self) -> Companions:
        """Return them for a single file of weights, beside which nothing is copied."""
        why = "a single file of weights is written"
        records = tuple(
            replace(record, action="left out", why=why) if record.action == "copied" else record
            for record in self.records
        )
        return Companions(files={}, records=records, notes=())

    def copy(self, folder: Path) -> None:
        """Copy them into the output."""
        for name, file in self.files.items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            except OSError as error:
                raise os_error(error, target) from error

    def told(self, folder: Path) -> tuple[InputFile, ...]:
        """Return the records, with what is in the folder another way than it was copied."""
        copied = {name.as_posix(): file for name, file in self.files.items()}

        def is_as_copied(record: InputFile) -> bool:
            written = folder / record.name
            return written.is_file() and filecmp.cmp(written, copied[record.name], shallow=False)

        return tuple(
            record if record.action == "left out" or is_as_copied(record) else replace(record, action="rewritten")
            for record in self.records
        )


def account(plan: Plan) -> Companions:
    """Return what becomes of the files beside the weights of all models of a plan.

    They come from the model whose configuration the output has, an adapter's tokenizer before its base's. What that one
    lacks of tokenizer, chat template, processor, code and further weights comes from the base.

    Raises:
        CheckpointError: A file that would be copied is a link out of its folder, or a pointer of git-LFS.
    """
    home = plan.config_from
    models: list[Source] = []
    for model in (home, plan.base, *plan.tuned):
        models += [own for own in (model, model.base) if own is not None]
    accounts: dict[Path, list[InputFile]] = {}
    files: dict[Path, Path] = dict(home.companions())
    notes: list[str] = []
    for model in models:
        if model.path in accounts:
            continue
        own = accounts[model.path] = []
        lends = model is plan.base or model is plan.base.base
        lent = _lacking(model, files) if lends else {}
        for found in model.beside():
            if found.name not in files and found.name in lent:
                files[found.name] = found.file
            taken = files.get(found.name) == found.file
            own.append(
                InputFile(
                    model=model.ref.name,
                    name=found.name.as_posix() + ("/" if found.file.is_dir() else ""),
                    action="copied" if taken else "left out",
                    why=_why(found, taken=taken, there=found.name in files),
                )
            )
            notes += _notes(found, model, taken=taken, there=found.name in files)
    for file in files.values():
        if file.stat().st_size <= POINTER_BYTES:
            refuse_foreign_file(file)
    records = tuple(record for found in accounts.values() for record in found)
    return Companions(files=files, records=records, notes=tuple(notes))


def _why(found: Companion, *, taken: bool, there: bool) -> str:
    if taken:
        return {"weights": "not fused: it may be part of the model"}.get(found.kind, found.kind)
    return found.left or ("another model has it too" if there else "the output's configuration is another model's")


def _notes(found: Companion, model: Source, *, taken: bool, there: bool) -> list[str]:
    """Return what is said of a file that may be part of the model."""
    if found.left is not None:
        whole = found.name == Path(ADAPTER_CONFIG)
        return [f"`{model.ref}` holds a whole model and an adapter: the whole model was read"] if whole else []
    if found.kind != "weights":
        return []
    if taken:
        return [f"`{found.name}` is copied from `{model.ref}`, not fused: it may be part of the model"]
    return [] if there else [f"`{found.name}` of `{model.ref}` is left out: it may be part of the model"]


def _lacking(model: Source, files: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return the files of a model that another one, of which these are the files, has need of and lacks."""
    offered: Sequence[Companion] = [found for found in model.beside() if found.left is None]
    kinds = {kind_of(name) for name in files if len(name.parts) == 1}
    wanted: set[str] = {"processor", "weights"}
    if "tokenizer" not in kinds:  # files of two tokenizers make none
        wanted.add("tokenizer")
    if "template" not in kinds and not _says_template(files):
        wanted.add("template")
    if "auto_map" in _json(files.get(Path(CONFIG))):
        wanted.add("code")
    return {found.name: found.file for found in offered if found.kind in wanted}


def _says_template(files: Mapping[Path, Path]) -> bool:
    return bool(_json(files.get(Path(TOKENIZER_CONFIG))).get("chat_template"))


def _json(file: Path | None) -> dict[str, object]:
    content = None if file is None else read_json(file)
    return content if isinstance(content, dict) else {}
