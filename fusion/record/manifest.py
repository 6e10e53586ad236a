"""Proof of what was done: versions, inputs with digests, options, and each tensor's figures."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from gzip import GzipFile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checkpoint import Source
from ..checkpoint.json_file import checked, read_json
from ..checkpoint.output.guard import record_beside
from ..checkpoint.output.scratch import Scratch
from ..checkpoint.output.workspace import write_file
from ..errors import CheckpointError
from ..file_kinds import MANIFEST, TENSORS
from ..methods import METHODS
from ..methods.two_sided import title_under
from ..places.pointer import nbytes_of
from ..plan.companions import InputFile
from ..plan.plan import Plan
from ..table import Table
from .files import FileRecord, files_of
from .records import TensorRecord

MANY = 20_000  # tensors; what is said of more stands in a file of its own, compressed
MOST_BYTES = 1 << 30  # of that file, unpacked: two million tensors take less
FORMAT = 2  # 1 had paths, digests of pieces, and the weight files alone
FILES = ("inputs", "outputs", "companions", "files")
UNTOLD = ("folder", "held")  # which are no part of the file


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One input checkpoint.

    Attributes:
        name: The hub's name with its revision, or the folder's own: not where it lay, which is nobody's business.
        version: The commit or ETag, of a model of the hub or of a URL; the manifest of another does not have it.
    """

    role: str
    name: str
    fingerprint: str
    files: tuple[FileRecord, ...]
    version: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        found = asdict(self)
        return found if self.version is not None else {key: found[key] for key in found if key != "version"}

    @classmethod
    def of(cls, role: str, checkpoint: Source, digests: Mapping[Path, str]) -> CheckpointRecord:
        """Describe an opened checkpoint."""
        return cls(
            role=role,
            name=_called(checkpoint),
            fingerprint=checkpoint.fingerprint,
            version=checkpoint.ref.version,
            files=tuple(
                FileRecord(name=name_within(file, checkpoint), nbytes=nbytes_of(file), digest=digests[file])
                for file in checkpoint.all_files
            ),
        )


def name_within(file: Path, checkpoint: Source) -> str:
    """Return what a file is called within the folder that was asked for."""
    inside = checkpoint.path in file.parents
    return file.relative_to(checkpoint.path).as_posix() if inside else file.name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is needed to make the output again, and to check it.

    The same inputs and options give the same manifest, wherever files lie, whatever the memory, tiles or device. The
    file also holds a digest of itself, so that a change by hand is noticed; against one by a forger there are
    signatures.

    Attributes:
        command: The command line, or None when called as a library; files and folders by their own names.
        settings: Seed, selection, policies and so on.
        curvature: Where the statistics came from, or None for H = I.
        outputs: The weight files that were written.
        companions: Every other file of the folder.
        files: What became of every file beside the inputs' weights.
        moved: How far the next tokens moved from the base's on each kind of general data that was not measured; None
            where nobody looked.
        folder: Where the model lies, or its patch; functions that take a model take the manifest in its place.
        held: What keeps a temporary folder there.
    """

    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    command: str | None
    inputs: tuple[CheckpointRecord, ...]
    curvature: Mapping[str, Any] | None
    outputs: tuple[FileRecord, ...]
    companions: tuple[FileRecord, ...] = ()
    files: tuple[InputFile, ...] = ()
    moved: Mapping[str, Any] | None = None
    renamings: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str | None]
    tensors: tuple[TensorRecord, ...]
    folder: Path | None = field(default=None, compare=False)
    held: object = field(default=None, compare=False)

    def __repr__(self) -> str:
        place = "" if self.folder is None else f", in {self.folder}"
        return f"Manifest({self.title}: {len(self.fused)} of {len(self.tensors)} tensors fused{place})"

    def _repr_html_(self) -> str:
        return self.table().html()

    def __fspath__(self) -> str:
        if self.folder is None:
            raise CheckpointError("the manifest does not say where its model lies")
        return str(self.folder)

    def table(self) -> Table:
        """Return what was done in a few lines."""
        rows = [
            ["models", ", ".join(record.name for record in self.inputs)],
            ["tensors fused", f"{len(self.fused)} of {len(self.tensors)}"],
            ["parameters fused", f"{sum(record.num_fused for record in self.fused):,}"],
            ["deltas that are zero", f"{self.realised_sparsity():.2%}"],
            ["… as fine-tuning never changed them", f"{self.unchanged():.2%}"],
            ["L1 norm of the fine-tune", f"{sum(record.fine_tuned_l1 or 0.0 for record in self.fused):.4g}"],
            ["L1 distance to the base", f"{sum(record.distance_l1 or 0.0 for record in self.fused):.4g}"],
        ]
        place = "" if self.folder is None else f"written to {self.folder}"
        return Table(columns=["", ""], rows=rows, title=self.title, note=place)

    @property
    def title(self) -> str:
        """What made it: `two-sided curvature, then TIES`."""
        method, protects = METHODS.get(self.method), self.settings.get("protection") is not None
        return self.method if method is None else title_under(method, protects=protects)

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
        if not self.dropped():
            return f"No delta was dropped{asked}{never}"
        num_tuned = len(self.inputs) - 1
        if num_tuned > 1:
            asked = asked and f"{asked[:-1]} of each model's deltas)"
            return (
                f"In {self.dropped():.2%} of the union of {num_tuned} models' changes no delta was kept{asked}{never}"
            )
        what = "the deltas that are not zero" if unchanged else "the deltas"
        return f"{self.dropped():.2%} of {what} were dropped{asked}{never}"

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as plain values, with the digest of them."""
        return {**self._head(), "tensors": [record.as_json() for record in self.tensors]}

    def _head(self) -> dict[str, Any]:
        """Return all but the tensors, with the digest of the whole."""
        head = {
            "format": FORMAT,
            **{key: value for key, value in vars(self).items() if key not in ("tensors", *FILES, *UNTOLD)},
            **{key: [asdict(record) for record in getattr(self, key)] for key in FILES},
            "inputs": [record.as_json() for record in self.inputs],
            "realised_sparsity": self.realised_sparsity(),
            "unchanged": self.unchanged(),
            "dropped": self.dropped(),
        }
        return {**head, "digest": digest_of(head, (record.as_json() for record in self.tensors))}

    def of_folder(self, folder: Path, algorithm: str) -> Manifest:
        """Return the manifest with every other file of the finished folder."""
        weights = {record.name for record in self.outputs}
        others = (file for file in files_of(folder) if file.relative_to(folder).as_posix() not in weights)
        return replace(self, companions=tuple(FileRecord.of(file, folder, algorithm) for file in others))

    def write(self, folder: Path) -> None:
        """Write `sculpt-manifest.json`, keys sorted, a line a tensor: the same run gives the same bytes.

        Of very many tensors the lines go into `sculpt-tensors.jsonl.gz` beside it, which `tensors` then names.
        """
        encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
        lines = (encode(record.as_json()) for record in self.tensors)
        is_beside = len(self.tensors) > MANY
        content = {**self._head(), "tensors": TENSORS if is_beside else []}
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        if is_beside:
            with (folder / TENSORS).open("wb") as raw, GzipFile("", "wb", 6, raw, mtime=0) as stream:
                stream.writelines(f"{line}\n".encode() for line in lines)
        elif self.tensors:
            before, empty, after = text.rpartition('"tensors": []')
            joined = ",\n  ".join(lines)
            text = f"{before}{empty[:-1]}\n  {joined}\n ]{after}"
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def write_beside(self, file: Path) -> None:
        """Write the manifest of a single file of weights, beside it."""
        with Scratch() as scratch:
            self.write(scratch.folder)
            for name, place in ((MANIFEST, record_beside(file)), (TENSORS, file.with_name(f"{file.stem}.{TENSORS}"))):
                if (scratch.folder / name).is_file():
                    content = (scratch.folder / name).read_bytes()
                    write_file(place, lambda p, c=content: p.write_bytes(c), made_by="fuse", may_replace=Path.is_file)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a fused checkpoint.

        Args:
            folder: Or a single file of weights, whose manifest lies beside it.

        Raises:
            CheckpointError: There is none, it is malformed, of another format, or was changed.
        """
        file = record_beside(folder) if folder.is_file() else folder / MANIFEST
        if not file.is_file():
            alone = f"`{folder}` has no `{file.name}` beside it"
            told = alone if folder.is_file() else f"`{folder}` holds no `{MANIFEST}`"
            raise CheckpointError(told, hint="only outputs of sculpt have one")
        content = read_json(file)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise CheckpointError(f"`{file}` is of format `{found}`; this version of sculpt reads {FORMAT}")
        if content.get("tensors") == TENSORS:
            content["tensors"] = _read_lines(file.with_name(file.name.removesuffix(MANIFEST) + TENSORS))
        tensors = content.pop("tensors", None)
        if not isinstance(tensors, list) or content.pop("digest", None) != digest_of(content, tensors):
            raise CheckpointError(f"`{file}` was changed: its content does not have its own digest")
        try:
            return replace(checked(cls, {**content, "tensors": tensors}), folder=folder)
        except CheckpointError as error:
            raise CheckpointError(f"`{file}` is malformed: {error.message}") from error


ASKED = "asked"  # of `curvature`: what a recipe says of the calibration


def sides_of(curvature: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    """Return what is said of each set that a side, `target` or `general`, was measured on: one stands by itself."""
    found = curvature.get(side) or []
    return found if isinstance(found, list) else [found]


def digest_of(content: Mapping[str, Any], tensors: Iterable[Any] | None = None) -> str:
    """Return the digest of a manifest's content, whatever its layout: of all as one line of JSON, keys sorted.

    Args:
        tensors: What `tensors` has, one by one, where the content is without: of many it would take more than all else.
    """
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    if tensors is None:
        return f"sha256:{hashlib.sha256(encode(content).encode()).hexdigest()}"
    before, mark, after = encode({**content, "tensors": []}).rpartition('"tensors":[')
    digest, comma = hashlib.sha256(f"{before}{mark}".encode()), ""
    for record in tensors:
        digest.update(f"{comma}{encode(record)}".encode())
        comma = ","
    digest.update(after.encode())
    return f"sha256:{digest.hexdigest()}"


def _read_lines(file: Path) -> list[Any]:
    """Return what stands in each line of a compressed file.

    Raises:
        CheckpointError: It is missing or malformed, or holds more than a model's records can be.
    """
    found, left = [], MOST_BYTES
    try:
        with gzip.open(file, "rb") as lines:
            while line := lines.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise CheckpointError(f"`{file}` holds more than {MOST_BYTES >> 30} GiB of records")
                found.append(json.loads(line))
        return found
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        raise CheckpointError(f"cannot read `{file}`: {error}") from error


def _called(model: Source) -> str:
    """Return the hub's name of a model with its revision, or its folder's own."""
    return str(model.ref) if model.ref.repository or model.ref.url else model.ref.name


def _without_places(value: Any) -> Any:
    """Return plain values with files and folders of this machine by their own names."""
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "../")) else value


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
    models = (plan.base, *plan.tuned)

    def nameless(note: str) -> str:
        for model in models:
            note = note.replace(f"`{model.ref}`", f"`{_called(model)}`")
        return note

    return Manifest(
        method=plan.method.name,
        options=options,
        settings=_without_places(settings),
        command=command,
        inputs=tuple(
            CheckpointRecord.of(role, checkpoint, digests) for role, checkpoint in zip(roles, models, strict=True)
        ),
        curvature=curvature,
        outputs=tuple(outputs),
        renamings=tuple(
            f"{rule.base_prefix}* in the base is {rule.tuned_prefix}* in the tuned model ({rule.count} tensors)"
            for rule in plan.renamings
        ),
        notes=tuple(map(nameless, (*plan.warnings, *plan.notes))),
        versions={
            "sculpt": installed_version("checkpoint-sculpt"),
            "numpy": installed_version("numpy"),
            "python": platform.python_version(),
        },
        tensors=tuple(records[step.name] for step in plan.steps),
    )
