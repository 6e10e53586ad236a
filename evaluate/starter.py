"""A suite to begin with: which scorer suits the rows that there are."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

from ..data import general as shipped
from ..data.row import Row
from ..data.rows import open_rows
from ..fusion.checkpoint.output.guard import Kind, file_kind, refuse_output
from ..fusion.checkpoint.output.workspace import repair, write_file
from ..fusion.errors import DataError, SculptError

TEXTS_EACH = 2  # of each kind of the general set
SEED = 7
HEAD = """# What a fine-tune is scored on; docs/choosing-a-strength.md has every scorer and its options.
# Choose a strength by one suite and judge the release by another, of other rows.
batch_size: 8
max_length: 512
"""
SUITE = file_kind("suite", HEAD.splitlines()[0].encode())
TEXTS = file_kind("file of texts", b'{"text": ')


def scorer_of(row: Row) -> str:
    """Return a task's scorer and options, by what a row holds.

    Raises:
        DataError: No scorer reads such a row.
    """
    if "choices" in row:
        return "scorer: multiple-choice"
    if "label" in row:
        return "scorer: classification"
    if "references" in row:
        return "scorer: caption"
    if "prompt" in row and "answer" in row:
        return "scorer: exact-match, max_new_tokens: 64"
    if "text" in row or "messages" in row or ("prompt" in row and "completion" in row):
        return "scorer: perplexity"
    raise DataError(
        f"no scorer reads {row.what}",
        hint=f"it has {row.names}; `prompt` and `completion`, `prompt` and `answer`, `text` or `messages` are read",
    )


def write_suite(
    output: Path | str,
    data: Path | str,
    general: Path | str | None = None,
    *,
    limit: int = 200,
    overwrite: bool = False,
) -> list[str]:
    """Write a suite; return what is to be said of it.

    Args:
        general: None for texts of the general set, which are written beside the suite.

    Raises:
        DataError: Rows cannot be scored.
        OutputError: A file exists, or is an input.
    """
    output, data, general = Path(output), Path(data), None if general is None else Path(general)
    read = [data, *([general] if general is not None else [])]
    beside = output.with_name(f"{output.stem}-general.jsonl")
    repair(beside)  # though the suite may be there
    refuse_output(output, read, SUITE, overwrite=overwrite)
    rows = open_rows(data)
    target = scorer_of(rows.row(0))
    told = [f"rows that the fine-tune was trained on flatter it: `{data}` should be other ones"]
    made = False
    if general is None:
        draw = random.Random(SEED)
        texts = [text for kind in shipped.kinds() for text in draw.sample(shipped.texts(kind), TEXTS_EACH)]
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        made = _write(beside, lines, [data], TEXTS, overwrite=overwrite)
        told.append(
            f"`{beside}` has texts of the general set that ships, which also protects by default: "
            "text of your own says more of what is forgotten"
        )
    side, general = (
        ("scorer: perplexity", beside) if general is None else (scorer_of(open_rows(general).row(0)), general)
    )
    folder = output.absolute().parent
    named = {"general": (general, side), "task": (data, target)}
    tasks = {
        name: f"  {name}: {{{scorer}, file: {json.dumps(relpath(file.absolute(), folder))}, limit: {limit}}}\n"
        for name, (file, scorer) in named.items()
    }
    text = (
        f"{HEAD}pretrained: # what the base could do\n{tasks['general']}"
        f"target: # what it was fine-tuned on\n{tasks['task']}"
    )
    try:
        _write(output, text, read, SUITE, overwrite=overwrite)
    except SculptError:
        if made:
            beside.unlink(missing_ok=True)
        raise
    return told


def _write(file: Path, text: str, read: Sequence[Path], kind: Kind, *, overwrite: bool) -> bool:
    """Write a file and return True, unless it is there as it would be: a killed run had come so far."""
    content = text.encode()
    is_plain = file.is_file() and not file.is_symlink()
    if is_plain and file.stat().st_size == len(content) and file.read_bytes() == content:
        return False
    refuse_output(file, read, kind, overwrite=overwrite)
    write_file(
        file,
        lambda path: path.write_bytes(content),
        made_by="suite init",
        may_replace=kind.may_replace if overwrite else None,
    )
    return True
