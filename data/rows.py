"""Data as rows: a file of one of many kinds, a folder of such files, a saved `datasets` folder, a folder of images.

Rows are read when they are asked for, so a large file costs its index only.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash

from ..fusion.errors import DataError, first_line
from ..fusion.ref import is_there
from ..fusion.run.calibration import GENERAL
from . import general
from .formats import COMPRESSED, READERS, RowTable, arrow, documents, open_table, text_of
from .layouts import IMAGE_SUFFIXES, in_our_words
from .row import Row

SHARD = re.compile(r"(.+?)[-.]\d+(-of-\d+)?$")  # train-00000-of-00002
SHIPPED = "calibration.txt"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a data set.

    Attributes:
        name: Of the file or folder, for people.
        count: How many there are.
        read: Row number to row.
        folder: What paths in rows are relative to.
        documents: Whether rows are running text, which is cut to samples, rather than samples; `kinds` always are.
        fields: Where the file names a field otherwise: ours to theirs.
        kinds: Where rows are of several kinds, all of which are to be shared alike: the rows of each.
        shares: Of kinds that are to have more tokens than others, how many times as many.
    """

    name: str
    count: int
    read: Callable[[int], Mapping[str, Any]]
    folder: Path
    documents: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, range] = field(default_factory=dict)
    shares: Mapping[str, int] = field(default_factory=dict)

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
        for theirs in self.fields.values():
            if theirs not in content:
                raise DataError(f"{what} has no `{theirs}`, which `fields` names", options=["fields"])
        renamed = {ours: content[theirs] for ours, theirs in self.fields.items()}
        kept = {key: value for key, value in content.items() if key not in self.fields.values()} | renamed
        kept = in_our_words({key: value for key, value in kept.items() if value is not None}, what)
        return Row(kept, what, self.folder, is_document=self.documents or bool(self.kinds))

    def limited(self, limit: int | None) -> Rows:
        """Return the first rows only."""
        return self if limit is None else dataclasses.replace(self, count=min(limit, self.count))


def open_rows(
    data: Path | str | None,
    media: Path | None = None,
    kinds: Sequence[str] = (),
    *,
    fields: Mapping[str, str] | None = None,
) -> Rows:
    """Return the rows of a data set; those of the text that ships with sculpt where none is given.

    Args:
        data: A path, or `general` for the general set that ships.
        media: The folder that holds what rows name, and that their paths are relative to; that of the data by default.
        kinds: Which kinds of the general set; all of them where none is named.
        fields: Where the data name a field otherwise: ours to theirs.

    Raises:
        DataError: The data are missing, unreadable, empty, or of a kind that is not known.
    """
    if data is None:
        text = (resources.files("sculpt.configs") / SHIPPED).read_text(encoding="utf-8")
        return _rows(documents(text, SHIPPED), name=SHIPPED, folder=Path())
    path = Path(data)
    if str(data) == GENERAL:
        refuse_two_meanings(data)
        return texts_of_set(kinds)
    if not is_there(path):
        shards = _shards_of(path)
        if not shards:
            raise DataError(f"`{data}` does not exist")
        rows = _joined(path, shards)
    elif path.is_dir():
        rows = _folder(path)
    else:
        if not path.is_file() and path.suffix.lower() in READERS:
            raise DataError(f"`{data}` is not a regular file")
        table = open_table(path)
        if table is None:
            known = ", ".join(sorted(READERS))
            raise DataError(
                f"`{data}` is of no known kind", hint=f"known are {known}, these with {', '.join(COMPRESSED)}, folders"
            )
        rows = _rows(table, name=path.name, folder=path.parent)
    if rows.count == 0:
        raise DataError(f"`{data}` is empty")
    return dataclasses.replace(rows, fields=fields or {}, folder=media or rows.folder)


def chosen(count: int, num_rows: int, seed: int) -> list[int]:
    """Return up to `count` row numbers in the order in which they were drawn.

    Drawn by a hash of (seed, number), so a larger sample begins with the smaller one.
    """

    def draw(number: int) -> tuple[int, int]:
        return xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"), seed=seed), number

    if count >= num_rows:
        return sorted(range(num_rows), key=draw)
    return heapq.nsmallest(count, range(num_rows), key=draw)


def refuse_two_meanings(data: Path | str | None) -> None:
    """Refuse the general set's name where something lies here under it: who gave the name may have meant that.

    Raises:
        DataError: Something does.
    """
    if str(data) == GENERAL and is_there(Path(GENERAL)):
        raise DataError(
            f"`{GENERAL}` is the general set that ships, and here a folder too",
            hint=f"`{Path(GENERAL).absolute()}` names the folder",
        )


def texts_of_set(kinds: Sequence[str] = ()) -> Rows:
    """Return the texts of the general set that ships, whatever lies here under its name.

    Args:
        kinds: Which of its kinds; all of them where none is named.

    Raises:
        DataError: There is no such kind.
    """
    texts, ranges = [], {}
    chosen_kinds = general.chosen_kinds(kinds)
    for kind in general.kinds():
        if kind not in chosen_kinds:
            continue
        ranges[kind] = range(len(texts), len(texts) + len(general.texts(kind)))
        texts += general.texts(kind)
    return Rows(
        name=GENERAL,
        count=len(texts),
        read=lambda number: {"text": texts[number]},
        folder=Path(),
        kinds=ranges,
    )


def _rows(table: RowTable, *, name: str, folder: Path) -> Rows:
    return Rows(name=name, count=table.count, read=table.read, folder=folder, documents=table.documents)


def _concatenated(tables: Sequence[RowTable]) -> RowTable:
    ends = list(accumulate(table.count for table in tables))

    def read(number: int) -> Mapping[str, Any]:
        place = bisect_right(ends, number)
        return tables[place].read(number - (ends[place - 1] if place else 0))

    return RowTable(count=ends[-1] if ends else 0, read=read, documents=any(table.documents for table in tables))


def _saved_dataset(path: Path) -> Rows:
    """Return the rows of a folder that `datasets.Dataset.save_to_disk` wrote: Arrow streams named in its state."""
    try:
        state = json.loads(text_of(path / "state.json", path / "state.json"))
        named = [path / Path(str(entry["filename"])).name for entry in state.get("_data_files") or ()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"`{path / 'state.json'}` is not what `datasets` writes: {first_line(error)}") from error
    if not named:
        raise DataError(f"`{path}` is a saved data set without data files")
    if state.get("_indices_files"):
        raise DataError(
            f"`{path}` is a selection of another data set", hint="`dataset.flatten_indices()` before saving it"
        )
    return _rows(_concatenated([arrow(file) for file in named]), name=path.name, folder=path)


def _is_table(file: Path) -> bool:
    suffixes = file.suffixes
    return bool(suffixes) and (
        suffixes[-1].lower() in READERS
        or (suffixes[-1].lower() in COMPRESSED and len(suffixes) > 1 and suffixes[-2].lower() in READERS)
    )


def _split_of(file: Path) -> str:
    """Return the split that a shard is of, by its name: `train` of `train-00000-of-00002.parquet`."""
    stem = file.name.partition(".")[0]
    found = SHARD.match(stem)
    return found[1] if found else stem


def _tables_in(folder: Path) -> list[Path]:
    """Return the files of rows in a folder; beside Parquet or Arrow, JSON is what describes the data."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _is_table(file))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    columns = [file for file in files if file.suffix.lower() in (".parquet", ".arrow")]
    return columns or [file for file in files if file.name not in ("dataset_info.json", "state.json")]


def _shards_of(path: Path) -> list[Path]:
    """Return the files of one split of a folder, which is named like a folder within it."""
    files = _tables_in(path.parent) if path.parent.is_dir() else []
    return [file for file in files if _split_of(file) == path.name]


def _joined(path: Path, files: Sequence[Path]) -> Rows:
    tables = [table for file in files if (table := open_table(file)) is not None]
    return _rows(_concatenated(tables), name=path.name, folder=files[0].parent)


def _folder(path: Path) -> Rows:
    if (path / "state.json").is_file():
        return _saved_dataset(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        raise DataError(f"`{path}` holds several splits", hint=f"name one of: {', '.join(splits)}")
    tables = _tables_in(path)
    splits = sorted({_split_of(file) for file in tables})
    if len(splits) > 1 and (set(splits) & {"train", "test", "validation"}):
        known = ", ".join(f"`{path / split}`" for split in splits)
        raise DataError(f"`{path}` holds several splits", hint=f"name one of {known}")
    if tables:
        return _joined(path, tables)
    images = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"`{path}` holds neither files of rows nor images")
    return Rows(
        name=path.name,
        count=len(images),
        read=lambda number: {"image": str(images[number].relative_to(path))},
        folder=path,
    )
