"""Data as rows: JSONL, Parquet, text, a saved `datasets` folder, or a folder of images.

Rows are read when they are asked for, so a large file costs its index only.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import xxhash

from ..fusion.errors import DataError, first_line
from ..fusion.ref import is_there
from ..fusion.run.calibration import GENERAL
from . import general
from .row import MAX_ROW_BYTES, Row

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DOCUMENT_BREAK = "%%"
SHIPPED = "calibration.txt"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a data set.

    Attributes:
        name: Of the file or folder, for people.
        count: How many there are.
        read: Row number to row.
        folder: What paths in rows are relative to.
        documents: Whether rows are running text, which is cut to samples, rather than samples.
        fields: Where the file names a field otherwise: ours to theirs.
        kinds: Where rows are of several kinds, all of which are to be shared alike: the rows of each.
    """

    name: str
    count: int
    read: Callable[[int], Mapping[str, Any]]
    folder: Path
    documents: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, range] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(self.count))

    def row(self, number: int) -> Row:
        """Return a row under our names for its fields; fields that hold nothing are left out.

        Raises:
            DataError: It cannot be read, or lacks a field that `fields` names.
        """
        what = f"row {number + 1} of `{self.name}`"
        content = dict(self.read(number))
        for ours, theirs in self.fields.items():
            if theirs not in content:
                raise DataError(f"{what} has no `{theirs}`, which `fields` names")
            content[ours] = content[theirs]
        kept = {key: value for key, value in content.items() if value is not None}
        return Row(kept, what, self.folder, is_document=self.documents)

    def limited(self, limit: int | None, fields: Mapping[str, str]) -> Rows:
        """Return the first rows only, with fields named otherwise."""
        count = self.count if limit is None else min(limit, self.count)
        return dataclasses.replace(self, count=count, fields=fields)


def open_rows(data: Path | str | None, media: Path | None = None, kinds: Sequence[str] = ()) -> Rows:
    """Return the rows of a data set; those of the text that ships with sculpt where none is given.

    Args:
        data: A path, or `general` for the general set that ships.
        media: The folder that holds what rows name, and that their paths are relative to; that of the data by default.
        kinds: Which kinds of the general set; all of them where none is named.

    Raises:
        DataError: The data are missing, unreadable, empty, or of a kind that is not known.
    """
    if data is None:
        text = (resources.files("sculpt.configs") / SHIPPED).read_text(encoding="utf-8")
        return _documents(text, name=SHIPPED, folder=Path())
    path = Path(data)
    if str(data) == GENERAL:
        if is_there(path):
            raise DataError(
                f"`{GENERAL}` is the general set that ships, and here a folder too",
                hint=f"`{path.absolute()}` names the folder",
            )
        return _general(general.chosen_kinds(kinds))
    if not is_there(path):
        raise DataError(f"`{data}` does not exist")
    if path.is_dir():
        rows = _folder(path)
    else:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            known = ", ".join(sorted(READERS))
            raise DataError(f"`{data}` is of no known kind", hint=f"known are {known} and folders")
        if not path.is_file():
            raise DataError(f"`{data}` is no regular file")
        rows = reader(path)
    if rows.count == 0:
        raise DataError(f"`{data}` is empty")
    return rows if media is None else dataclasses.replace(rows, folder=media)


def chosen(count: int, num_rows: int, seed: int) -> list[int]:
    """Return up to `count` row numbers in the order in which they were drawn.

    Drawn by a hash of (seed, number), so a larger sample begins with the smaller one.
    """

    def draw(number: int) -> tuple[int, int]:
        return xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"), seed=seed), number

    if count >= num_rows:
        return sorted(range(num_rows), key=draw)
    return heapq.nsmallest(count, range(num_rows), key=draw)


def drawn(count: int, num_rows: int, seed: int) -> Iterator[int]:
    """Yield row numbers in the order in which they are drawn: `count` of them, then, if asked for, the others."""
    yield from chosen(count, num_rows, seed)
    if count < num_rows:
        yield from chosen(num_rows, num_rows, seed)[count:]


def _general(kinds: Sequence[str]) -> Rows:
    texts, ranges = [], {}
    for kind in kinds:
        ranges[kind] = range(len(texts), len(texts) + len(general.texts(kind)))
        texts += general.texts(kind)
    return Rows(
        name=GENERAL,
        count=len(texts),
        read=lambda number: {"text": texts[number]},
        folder=Path(),
        kinds=ranges,
    )


def _too_long(what: str) -> DataError:
    return DataError(
        f"{what} is longer than {MAX_ROW_BYTES >> 20} MiB, and a row is held in memory whole",
        hint=f"cut it into several rows; in a text `{DOCUMENT_BREAK}` on a line of its own begins a new document",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read `{path}`: {error}") from error


def _text(path: Path) -> Rows:
    return _documents(_read_text(path), name=path.name, folder=path.parent)


def _documents(text: str, *, name: str, folder: Path) -> Rows:
    documents, lines = [], []
    for line in [*text.splitlines(), DOCUMENT_BREAK]:
        if line.strip() == DOCUMENT_BREAK:
            document = "\n".join(lines).strip()
            if len(document) > MAX_ROW_BYTES:
                raise _too_long(f"document {len(documents) + 1} of `{name}`")
            if document:
                documents.append(document)
            lines = []
        else:
            lines.append(line)
    return Rows(
        name=name,
        count=len(documents),
        read=lambda number: {"text": documents[number]},
        folder=folder,
        documents=True,
    )


def _jsonl(path: Path) -> Rows:
    starts: list[int] = []
    try:
        with path.open("rb") as stream:
            start = 0
            # One line at most is in memory, however large the file is.
            while line := stream.readline(MAX_ROW_BYTES + 1):
                if len(line) > MAX_ROW_BYTES:
                    raise _too_long(f"row {len(starts) + 1} of `{path}`")
                if line.strip():
                    starts.append(start)
                start += len(line)
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror or error}") from error

    def read(number: int) -> Mapping[str, Any]:
        try:
            with path.open("rb") as stream:
                stream.seek(starts[number])
                line = stream.readline(MAX_ROW_BYTES + 1)
            row = json.loads(line.decode("utf-8-sig"))
            if b"\\ud" in line.lower():
                json.dumps(row, ensure_ascii=False).encode()  # no tokenizer takes half a character
        except OSError as error:
            raise DataError(f"cannot read `{path}`: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"row {number + 1} of `{path}` is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"row {number + 1} of `{path}` is not a JSON object")
        return row

    return Rows(name=path.name, count=len(starts), read=read, folder=path.parent)


def _arrow_error(path: Path, error: Exception) -> DataError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(f"cannot read `{path}`: {lines[0]}")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "reading Parquet and `datasets` folders needs pyarrow",
            hint="`pip install 'checkpoint-sculpt[parquet]'`",
        ) from error
    return pyarrow


def _parquet(path: Path) -> Rows:
    _pyarrow()
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own tree of errors, OSError, ValueError
        raise _arrow_error(path, error) from error
    ends: list[int] = []
    for group in range(file.num_row_groups):
        ends.append((ends[-1] if ends else 0) + file.metadata.row_group(group).num_rows)

    @cache
    def table(group: int) -> Any:
        return file.read_row_group(group)

    def read(number: int) -> Mapping[str, Any]:
        group = next(k for k, end in enumerate(ends) if number < end)
        start = ends[group - 1] if group else 0
        return table(group).slice(number - start, 1).to_pylist()[0]

    return Rows(name=path.name, count=ends[-1] if ends else 0, read=read, folder=path.parent)


def _saved_dataset(path: Path) -> Rows:
    """Return the rows of a folder that `datasets.Dataset.save_to_disk` wrote: Arrow streams named in its state."""
    pyarrow = _pyarrow()
    try:
        state = json.loads(_read_text(path / "state.json"))
        names = [Path(str(entry["filename"])).name for entry in state.get("_data_files") or ()]
        is_selection = bool(state.get("_indices_files"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"`{path / 'state.json'}` is not what `datasets` writes: {first_line(error)}") from error
    tables = []
    for name in names:
        file = path / name
        try:
            with pyarrow.memory_map(str(file)) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
        except Exception as error:
            raise _arrow_error(file, error) from error
    if not tables:
        raise DataError(f"`{path}` is a saved data set without data files")
    try:
        table = pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:  # files of several schemas
        raise _arrow_error(path, error) from error
    if is_selection:
        raise DataError(
            f"`{path}` is a selection of another data set", hint="`dataset.flatten_indices()` before saving it"
        )
    return Rows(
        name=path.name,
        count=table.num_rows,
        read=lambda number: table.slice(number, 1).to_pylist()[0],
        folder=path,
    )


def _folder(path: Path) -> Rows:
    if (path / "state.json").is_file():
        return _saved_dataset(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        raise DataError(f"`{path}` holds several splits", hint=f"name one of: {', '.join(splits)}")
    images = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"`{path}` is neither a saved data set nor a folder of images")
    return Rows(
        name=path.name,
        count=len(images),
        read=lambda number: {"image": str(images[number].relative_to(path))},
        folder=path,
    )


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".text": _text,
    ".txt": _text,
}
