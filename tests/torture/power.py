"""What a power cut leaves: of files and names only what was brought to the disk, in three ways of losing the rest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

Loss = Literal["content", "names", "both"]
Tree = dict[int, dict[str, int]]


class Before:
    """What was on the disk when the run began."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.root = folder.stat().st_ino
        self.names: Tree = {}
        self.store = store
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                self.names[path.stat().st_ino] = names_in(path)
            else:
                shutil.copyfile(path, store / f"content-{path.stat().st_ino}")


def names_in(folder: Path) -> dict[str, int]:
    """Return the numbers of what lies in a folder."""
    return {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in os.scandir(folder)}


def cut_power(folder: Path, before: Before, loss: Loss) -> None:
    """Make of a folder, in which a process has just been killed, what a power cut might have left.

    Args:
        loss: Whether the content of files is lost that was not brought to the disk, or names, or both.
    """
    now: Tree = {folder.stat().st_ino: names_in(folder)}
    content: dict[int, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_dir():
            now[path.stat().st_ino] = names_in(path)
        else:
            content[path.stat().st_ino] = path.read_bytes()
    names = now if loss == "content" else {**{key: {} for key in now}, **before.names, **_synced_names(before.store)}
    kept = {int(file.name.partition("-")[2]): file.read_bytes() for file in before.store.glob("content-*")}
    if loss == "names":
        contents = {**kept, **content}
    else:
        contents = {**{number: bytes(len(found)) for number, found in content.items()}, **kept}
    numbers = {path: path.stat().st_ino for path in folder.rglob("*")}
    held = folder.with_name(folder.name + "-held")
    held.mkdir()
    for path in sorted(numbers, reverse=True):  # what lies in a folder before the folder: each keeps its number
        path.rename(held / str(numbers[path]))
    _fill(folder, before.root, held, names, contents, {})
    shutil.rmtree(held)


def _synced_names(store: Path) -> Tree:
    found: Tree = {}
    for file in store.glob("names-*"):
        pairs = (line.split(" ", 1) for line in file.read_text().splitlines())
        found[int(file.name.partition("-")[2])] = {name: int(number) for number, name in pairs}
    return found


def _fill(
    folder: Path, number: int, held: Path, names: Tree, contents: dict[int, bytes], placed: dict[int, Path]
) -> None:
    for name, inner in sorted(names[number].items()):  # an output before its workspace
        place = folder / name
        if inner in placed and placed[inner].is_dir():  # a folder has one name
            continue
        if (held / str(inner)).exists():
            placed[inner] = (held / str(inner)).rename(place)
        elif inner in placed and placed[inner].is_file():  # a rename of which one half came to the disk
            place.hardlink_to(placed[inner])
        if inner in names:
            place.mkdir(exist_ok=True)
            _fill(place, inner, held, names, contents, placed)
        elif not place.exists() or place.read_bytes() != contents.get(inner, b""):
            place.write_bytes(contents.get(inner, b""))
