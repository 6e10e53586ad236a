"""Files of rows: JSON lines, JSON, CSV, Parquet, Arrow, text; any of them compressed by gzip, bzip2 or xz.

Each gives how many rows there are and reads one when it is asked for, so a file of any size costs an index of numbers.
Rows are read fastest in order.
"""

from __future__ import annotations

import atexit
import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..fusion.errors import DataError, first_line, installs
from .row import MAX_ROW_BYTES

DOCUMENT_BREAK = "%%"
CHUNK = 1 << 20  # characters
BATCH_ROWS = 64
OPENING, BETWEEN = r"\s*\[\s*", r"[\s,]*"
COMPRESSED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
Content = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowTable:
    """Rows of one file.

    Attributes:
        count: How many there are.
        read: Row number to what the row holds.
        documents: Whether rows are running text.
    """

    count: int
    read: Callable[[int], Content]
    documents: bool = False


def open_table(path: Path) -> RowTable | None:
    """Return the rows of a file, None if its name says of no known kind.

    Raises:
        DataError: It cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    unpack = COMPRESSED.get(suffixes[-1]) if suffixes else None
    reader = READERS.get(suffixes[-2] if unpack and len(suffixes) > 1 else suffixes[-1] if suffixes else "")
    if reader is None:
        return None
    return reader(_unpacked(path, unpack) if unpack else path, path)


def _unpacked(path: Path, unpack: Callable[..., Any]) -> Path:
    """Return a file with the content of a compressed one, which goes when the program ends."""
    try:
        with unpack(path, "rb") as source, tempfile.NamedTemporaryFile(prefix="sculpt-", delete=False) as target:
            atexit.register(Path(target.name).unlink, missing_ok=True)
            shutil.copyfileobj(source, target)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"cannot read `{path}`: {first_line(error)}") from error
    return Path(target.name)


def _reading(path: Path, error: Exception) -> DataError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return DataError(f"cannot read `{path}`: {said}")


def text_of(path: Path, named: Path) -> str:
    """Return a file's text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _reading(named, error) from error


def too_long(what: str) -> DataError:
    """Return the refusal of a row that would have to be held in memory whole."""
    return DataError(
        f"{what} is longer than {MAX_ROW_BYTES >> 20} MiB, and a row must fit in memory",
        hint=f"cut it into several rows; in a text `{DOCUMENT_BREAK}` on a line of its own begins a new document",
    )


def documents(text: str, name: str) -> RowTable:
    """Return the documents of a text, which lines of `%%` part."""
    found: list[str] = []
    lines: list[str] = []
    for line in [*text.splitlines(), DOCUMENT_BREAK]:
        if line.strip() == DOCUMENT_BREAK:
            document = "\n".join(lines).strip()
            if len(document) > MAX_ROW_BYTES:
                raise too_long(f"document {len(found) + 1} of `{name}`")
            if document:
                found.append(document)
            lines = []
        else:
            lines.append(line)
    return RowTable(count=len(found), read=lambda number: {"text": found[number]}, documents=True)


def _text(path: Path, named: Path) -> RowTable:
    return documents(text_of(path, named), named.name)


def _json_row(line: bytes, number: int, named: Path) -> Content:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()  # no tokenizer takes half a character
    except (ValueError, RecursionError) as error:
        raise DataError(f"row {number + 1} of `{named}` is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"row {number + 1} of `{named}` is not a JSON object")
    return row


def _jsonl(path: Path, named: Path) -> RowTable:
    starts = array("q")
    try:
        with path.open("rb") as stream:
            start = 0
            # One line at most is in memory, however large the file is.
            while line := stream.readline(MAX_ROW_BYTES + 1):
                if len(line) > MAX_ROW_BYTES:
                    raise too_long(f"row {len(starts) + 1} of `{named}`")
                if line.strip():
                    starts.append(start)
                start += len(line)
    except OSError as error:
        raise _reading(named, error) from error

    def read(number: int) -> Content:
        try:
            with path.open("rb") as stream:
                stream.seek(starts[number])
                line = stream.readline(MAX_ROW_BYTES + 1)
        except OSError as error:
            raise _reading(named, error) from error
        return _json_row(line, number, named)

    return RowTable(count=len(starts), read=read)


def _json(path: Path, named: Path) -> RowTable:
    """Return the objects of a JSON array, or of JSON lines, as many data sets call those too."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = next((character for line in stream for character in line.strip()[:1]), "")
        if first != "[":
            return _jsonl(path, named)
        spans = array("q")
        for start, end in _elements(path, named):
            spans.extend((start, end))
    except (OSError, UnicodeDecodeError) as error:
        raise _reading(named, error) from error

    def read(number: int) -> Content:
        start, end = spans[2 * number : 2 * number + 2]
        with path.open("rb") as stream:
            stream.seek(start)
            return _json_row(stream.read(end - start), number, named)

    return RowTable(count=len(spans) // 2, read=read)


def _elements(path: Path, named: Path) -> Iterator[tuple[int, int]]:
    """Yield at which byte each element of a JSON array begins and ends, a piece of the file at a time."""
    decoder = json.JSONDecoder()
    with path.open("rb") as stream:
        at = 3 if stream.read(3) == codecs.BOM_UTF8 else 0  # the byte of character `place` of what lies ahead
    with path.open(encoding="utf-8-sig", newline="") as stream:
        ahead, place, number, between = stream.read(CHUNK), 0, 0, OPENING
        while True:
            begin = re.compile(between).match(ahead, place).end()  # pyright: ignore[reportOptionalMemberAccess]
            at, place, between = at + begin - place, begin, BETWEEN
            if ahead[place : place + 1] == "]":
                return
            try:
                _, end = decoder.raw_decode(ahead, place)
            except (ValueError, RecursionError):
                end = len(ahead)
            if end < len(ahead):
                size = len(ahead[place:end].encode())
                yield at, at + size
                at, place, number = at + size, end, number + 1
                continue
            if len(ahead) - place > MAX_ROW_BYTES:
                raise too_long(f"row {number + 1} of `{named}`")
            more = stream.read(max(CHUNK, len(ahead) - place))  # it may have been cut
            if not more:
                raise DataError(f"row {number + 1} of `{named}` is not JSON, or the array does not end")
            ahead, place = ahead[place:] + more, 0


def _csv(path: Path, named: Path) -> RowTable:
    """Return the lines of a table with a header; a comma, semicolon or tab parts them, as the header says."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    starts = array("q")
    at = 0

    def lines(stream: Any) -> Iterator[str]:
        nonlocal at
        for line in stream:
            at += len(line)
            yield line.decode("utf-8-sig" if at == len(line) else "utf-8")

    try:
        with path.open("rb") as stream:
            header = stream.readline()
            mark = max(b",;\t", key=header.count)
            stream.seek(0)
            rows = csv.reader(lines(stream), delimiter=chr(mark), strict=True)
            names = next(rows, [])
            starts.append(at)
            for row in rows:
                if row:
                    starts.append(at)
                else:
                    starts[-1] = at
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _reading(named, error) from error

    def read(number: int) -> Content:
        with path.open("rb") as stream:
            stream.seek(starts[number])
            text = stream.read(starts[number + 1] - starts[number]).decode()
        values = next(csv.reader(io.StringIO(text, newline=""), delimiter=chr(mark)))
        if len(values) != len(names):
            raise DataError(f"row {number + 1} of `{named}` has {len(values)} cells, and the header {len(names)}")
        return {name: value for name, value in zip(names, values, strict=True) if value}

    return RowTable(count=max(0, len(starts) - 1), read=read)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "reading Parquet and `datasets` folders needs pyarrow",
            hint=installs("parquet"),
        ) from error
    return pyarrow


@final
class _Parquet:
    """The rows of a Parquet file, of which a few that follow one another are held."""

    def __init__(self, path: Path, named: Path) -> None:
        _pyarrow()
        import pyarrow.parquet

        self._named = named
        try:
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
        except Exception as error:  # pyarrow's own tree of errors, OSError, ValueError
            raise _reading(named, error) from error
        self.ends = array("q")
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            self.ends.append((self.ends[-1] if self.ends else 0) + rows)
        self._group = -1
        self._start = 0  # the number of the first row that is held
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def read(self, number: int) -> Content:
        """Return a row; the rows of its group before it are passed over, unless that has been done."""
        group = next(k for k, end in enumerate(self.ends) if number < end)
        if group != self._group or number < self._start:
            self._group, self._start = group, self.ends[group - 1] if group else 0
            self._batch, self._batches = None, self._file.iter_batches(BATCH_ROWS, row_groups=[group])
        try:
            while self._batch is None or number >= self._start + len(self._batch):
                self._start += 0 if self._batch is None else len(self._batch)
                self._batch = next(self._batches)
            return self._batch.slice(number - self._start, 1).to_pylist()[0]
        except Exception as error:
            self._group = -1
            raise _reading(self._named, error) from error


def _parquet(path: Path, named: Path) -> RowTable:
    file = _Parquet(path, named)
    return RowTable(count=file.ends[-1] if file.ends else 0, read=file.read)


def arrow(path: Path) -> RowTable:
    """Return the rows of an Arrow file or stream, which stays on the disk."""
    pyarrow = _pyarrow()
    try:
        source = pyarrow.memory_map(str(path))
        try:
            table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            table = pyarrow.ipc.open_file(source).read_all()
    except Exception as error:
        raise _reading(path, error) from error
    return RowTable(count=table.num_rows, read=lambda number: table.slice(number, 1).to_pylist()[0])


READERS: dict[str, Callable[[Path, Path], RowTable]] = {
    ".arrow": lambda path, _named: arrow(path),
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".text": _text,
    ".tsv": _csv,
    ".txt": _text,
}
