"""Write the general set that ships, `configs/general/`: one file of JSON lines a kind. The same bytes every time.

    python benchmarks/general_set/build.py                    # every kind; fetches packages on the first run
    python benchmarks/general_set/build.py frames arithmetic  # some of them

`questions` is written by hand, and not touched. Without names `LICENSES.txt` is written too, what the packages say.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import collected
import lexicon
import programs
import talk
from arithmetic import arithmetic
from configuration import configuration
from frames import frames
from letters import mails
from logs import logs
from outlines import headings, lists
from packages import notices
from structured import csv_of, json_of, tables, xml_of
from words import Hand

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "general"
SEED = 1789
BYTES = 48_000  # of a kind, about
MOST = 400  # rows of a kind

# Each gives so many rows, drawn by the hand.
WRITTEN: dict[str, Callable[[Hand, int], list[str]]] = {
    "arithmetic": arithmetic,
    "configuration": configuration,
    "csv": csv_of,
    "frames": frames,
    "headings": headings,
    "json": json_of,
    "lists": lists,
    "logs": logs,
    "mails": mails,
    "tables": tables,
    "xml": xml_of,
}
COLLECTED: dict[str, Callable[[Hand, int], list[str]]] = {
    "answers": talk.answers,
    "bilingual": lexicon.bilingual,
    "code-other": programs.code_other,
    "code-python": programs.code_python,
    "code-systems": programs.code_systems,
    "code-web": programs.code_web,
    "dialogues": talk.dialogues,
    "dictionaries": lexicon.dictionaries,
    "languages": collected.languages,
    "manuals": collected.manuals,
    "markup": collected.markup,
    "novels": collected.novels,
    "plays": collected.documents(collected.PLAYS),
    "reference": collected.documents(collected.COUNTRIES),
    "sentences": collected.sentences,
    "speeches": collected.documents(collected.SPEECHES),
}
KINDS = WRITTEN | COLLECTED


def rows_of(kind: str) -> list[str]:
    """Return the rows of a kind in a random order: as many as fill its share, each text once."""
    hand = Hand(SEED + zlib.crc32(kind.encode()))
    found = list(dict.fromkeys(text.strip("\n") for text in KINDS[kind](hand, MOST) if text.strip()))
    hand.shuffle(found)
    kept, size = [], 0
    for text in found:
        if size >= BYTES:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def as_lines(rows: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows)


def main() -> None:
    for kind in sys.argv[1:] or sorted(KINDS):
        rows = rows_of(kind)
        (FOLDER / f"{kind}.jsonl").write_text(as_lines(rows), encoding="utf-8")
        print(f"{kind:14} {len(rows):4} rows {sum(map(len, rows)):7} characters")
    if len(sys.argv) == 1:
        (FOLDER / "LICENSES.txt").write_text(notices(), encoding="utf-8")


if __name__ == "__main__":
    main()
