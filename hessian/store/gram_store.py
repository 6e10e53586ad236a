"""Where Σ x·xᵀ of finished tensors goes while a calibration is under way: a file, so that memory stays a block's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.checkpoint.output.checked import digest_of
from ...fusion.checkpoint.output.disk import sync
from ...fusion.checkpoint.output.workspace import told
from ...fusion.errors import OutputError
from ...fusion.names import block_of


class LostError(Exception):
    """What a run that was killed left cannot be taken up again."""


def with_summed_grams(
    block: Mapping[str, Curvature], sides: Sequence[Mapping[str, np.ndarray | None]]
) -> dict[str, Curvature]:
    """Return a block's curvature with Σ x·xᵀ added up over several sets of samples, in float64.

    Tensors that share a matrix on every side share the sum. One that a side has seen without its matrix gets none.

    Args:
        sides: Of each set, the matrices of the tensors that it has seen.
    """
    sums: dict[tuple[int, ...], np.ndarray] = {}
    found = {}
    for name, curvature in block.items():
        grams = [side[name] for side in sides if name in side]
        known = [gram for gram in grams if gram is not None]
        key = tuple(map(id, known)) if len(known) == len(grams) else ()
        if key and key not in sums:
            sums[key] = np.asarray(np.sum(known, axis=0, dtype=np.float64), np.float32)
        found[name] = replace(curvature, gram=sums.get(key))
    return found


def by_block(names: Iterable[str]) -> list[list[str]]:
    """Return the names, sorted, of one block after another: the matrices of all together would not fit in memory."""
    blocks: dict[str, list[str]] = {}
    for name in sorted(names):
        blocks.setdefault(block_of(name), []).append(name)
    return list(blocks.values())


@dataclass(frozen=True)
class _Extent:
    """Where a matrix lies in the file."""

    start: int
    shape: tuple[int, ...]
    digest: str


class GramStore:
    """A file of float32 matrices, one copy for tensors that see the same inputs.

    Args:
        file: To be made, or to be continued.
        state: What `state` returned when the run was interrupted; what was written after that is cut off.

    Raises:
        LostError: The file is gone, or holds something else than was written to it.
    """

    def __init__(self, file: Path, state: Mapping[str, Any] | None = None) -> None:
        self.file = file
        self._end = 0 if state is None else int(state["end"])
        self._places = {
            name: _Extent(start, tuple(shape), digest) for name, start, shape, digest in (state or {}).get("places", ())
        }
        self._views: dict[_Extent, np.ndarray] = {}
        if self._end and (not file.exists() or file.stat().st_size < self._end):
            raise LostError(f"`{file}` does not hold what was written to it")
        for place in set(self._places.values()):
            if digest_of(self._mapped(place)) != place.digest:
                raise LostError(f"`{file}` does not hold what was written to it")
        if file.exists():
            with told(file), file.open("r+b") as stream:
                stream.truncate(self._end)

    def state(self) -> dict[str, Any]:
        """Return what another store needs to go on with the file."""
        places = [[name, p.start, list(p.shape), p.digest] for name, p in sorted(self._places.items())]
        return {"end": self._end, "places": places}

    def sync(self) -> None:
        """Bring what was written to the disk."""
        if self.file.exists():
            with told(self.file):
                sync(self.file)

    def keep(self, curvatures: Mapping[str, Curvature]) -> dict[str, Curvature]:
        """Write the matrices of a block; return its curvature with views of the file in their place.

        A tensor that an earlier run has written, and that comes without its matrix, is given it.

        Raises:
            OutputError: The disk is full, or fails.
        """
        written: dict[int, _Extent] = {}
        found: dict[str, Curvature] = {}
        for name, curvature in curvatures.items():
            gram = curvature.gram
            if gram is not None:
                if id(gram) not in written:
                    written[id(gram)] = self._write(gram)
                self._places[name] = written[id(gram)]
            found[name] = replace(curvature, gram=self._view(name))
        return found

    def _write(self, gram: np.ndarray) -> _Extent:
        content = np.ascontiguousarray(gram, "<f4")
        place = _Extent(self._end, gram.shape, digest_of(content))
        with told(self.file), self.file.open("r+b" if self.file.exists() else "w+b") as stream:
            stream.seek(place.start)
            stream.write(content.data)
        self._end += gram.size * 4
        return place

    def _view(self, name: str) -> np.ndarray | None:
        place = self._places.get(name)
        if place is None:
            return None
        if place not in self._views:
            self._views[place] = self._mapped(place)
        return self._views[place]

    def _mapped(self, place: _Extent) -> np.ndarray:
        try:
            return np.memmap(self.file, "<f4", "r", place.start, place.shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot read `{self.file}` back: {error}") from error
