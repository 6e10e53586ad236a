"""The folder in which an unfinished calibration keeps what it needs to go on from a finished unit.

Where units take long it is the last; others are passed without a state, so that writing takes little of the time.

Files are written first, then `state.json` replaces the one before: a kill at any time, or a power cut, leaves the last
whole state. The state has a digest of every file, and one of its own.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fusion.checkpoint.output.checked import DamagedError, digest_of, read_checked, write_checked
from ...fusion.checkpoint.output.disk import replace_whole, sync_all
from ...fusion.checkpoint.output.lines import line_of, read_lines
from ...fusion.checkpoint.output.workspace import MARK, PROCESSES, STATE, Workspace, told
from ..measure.statistics import ParameterStatistics
from ..store.gram_store import GramStore, LostError
from .tape import Event, Handle, Tape

GRAMS = "grams.bin"
EVERY_SECONDS = 5.0  # a kill loses little more than that; a state takes some syncs of the disk


class Journal:
    """The folder of one unfinished run.

    Attributes:
        folder: Beside the output.
        passed: Indices of units that all batches have passed, as far as the state on disk goes.
    """

    def __init__(self, workspace: Workspace, fingerprint: Mapping[str, Any]) -> None:
        self.folder = workspace.folder
        self._workspace = workspace
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.passed: list[int] = []
        self._state: dict[str, Any] | None = None
        self._count = 0
        self._files: dict[str, str] = {}  # parameter -> file of its statistics
        self._uses: dict[str, int] = {}  # parameter -> uses that the file counts
        self._digests: dict[str, str] = {}  # of every file that a state may name
        self._new: list[str] = []  # files that are not on the disk for certain
        self._written = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a state is to be written after the unit that comes."""
        return time.monotonic() - self._written >= EVERY_SECONDS

    def open(self) -> bool:
        """Return whether there is a state of this very run to go on from; what is left of another is removed."""
        with told(self.folder / STATE):
            state = next(iter(read_lines(self.folder / STATE)), None)
        if state is None or state["fingerprint"] != self.fingerprint:
            self.discard()
            return False
        self._workspace.begun = True
        self._state = state
        self.passed = list(state["passed"])
        self._count = state["count"]
        self._files = dict(state["statistics"])
        self._uses = dict.fromkeys(self._files, 0)  # what is restored counts from zero
        self._digests = dict(state["digests"])
        return True

    def discard(self) -> None:
        """Remove everything."""
        self._workspace.empty()
        self.passed, self._state, self._files, self._uses, self._digests, self._new = [], None, {}, {}, {}, []

    def keep(self, run: int, tape: Tape) -> None:
        """Write the tensors with which a batch was parked, those that are not written yet."""
        if tape.unsupported:
            return
        for number, handle in enumerate(tape.handles):
            if handle.storage.expired():
                handle.file = None
            elif handle.file is None:
                handle.file = f"{run}-{number}.bin"
                content = _dense(handle.tensor().cpu()).view(torch.uint8).numpy()
                self._digests[handle.file] = write_checked(self.folder / handle.file, content)
                self._new.append(handle.file)

    def write(
        self,
        passed: Sequence[int],
        tapes: Mapping[int, Tape],
        finished: Mapping[str, ParameterStatistics],
        unfinished: Mapping[str, ParameterStatistics],
        grams: GramStore | None,
    ) -> None:
        """Write the state after a unit.

        Args:
            tapes: Of the batches that go on; their tensors have been kept.
            finished: Statistics of units that all batches have passed; written again only if they have changed.
            unfinished: Other statistics.
            grams: Of finished statistics.
        """
        if any(tape.unsupported for tape in tapes.values()):
            return
        self._count += 1
        new = {name: e for name, e in finished.items() if e.used and self._uses.get(name, -1) != e.num_uses}
        if new:
            self._files |= dict.fromkeys(new, self._write_statistics(f"unit-{self._count}.npz", new))
            self._uses |= {name: entry.num_uses for name, entry in new.items()}
        still = {name: entry for name, entry in unfinished.items() if entry.used}
        self._files = {name: file for name, file in self._files.items() if name not in still}
        state = {
            "fingerprint": self.fingerprint,
            "count": self._count,
            "passed": list(passed),
            "statistics": self._files,
            "open": self._write_statistics(f"open-{self._count}.npz", still) if still else None,
            "grams": None if grams is None else grams.state(),
            "runs": {str(run): _described(tape) for run, tape in tapes.items()},
        }
        with told(self.folder):
            self._replace_state(state, grams)
        self._written = time.monotonic()

    def _replace_state(self, state: dict[str, Any], grams: GramStore | None) -> None:
        used = {state["open"], *state["statistics"].values()} - {None}
        used |= {place[0] for run in state["runs"].values() for place in run["tensors"]} - {None}
        self._digests = {file: self._digests[file] for file in sorted(used)}
        sync_all(self.folder / file for file in self._new if file in used)
        self._new = []
        if grams is not None:
            grams.sync()
        line = line_of({**state, "digests": self._digests})
        replace_whole(self.folder / STATE, line, beside=self.folder / f"{STATE}.tmp")
        for file in self.folder.iterdir():
            if file.name not in used | {STATE, GRAMS, MARK, PROCESSES}:
                file.unlink()

    def _write_statistics(self, name: str, statistics: Mapping[str, ParameterStatistics]) -> str:
        arrays = {f"{name}|{key}": array for name, entry in statistics.items() for key, array in entry.dump().items()}
        file = self.folder / name
        with told(file):
            with file.open("wb") as stream:
                np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
            self._digests[name] = digest_of(np.fromfile(file, np.uint8))
        self._new.append(name)
        return name

    def _read(self, name: str) -> np.ndarray:
        try:
            return read_checked(self.folder / name, self._digests[name])
        except DamagedError as error:
            raise LostError(error.message) from error

    def restore_statistics(self, statistics: Mapping[str, ParameterStatistics]) -> None:
        """Fill in the sums of the state that was opened."""
        assert self._state is not None
        open_file = self._state["open"]
        for file in sorted({*self._files.values(), *filter(None, [open_file])}):
            with np.load(io.BytesIO(self._read(file).data)) as arrays:
                for key in arrays.files:
                    parameter, _, rest = key.partition("|")
                    if self._files.get(parameter, open_file) == file:  # not what another file replaces
                        statistics[parameter].fill(rest, arrays[key])

    def grams_state(self) -> dict[str, Any] | None:
        """Return the state of the store of Σ x·xᵀ, as it was written with that which was opened."""
        assert self._state is not None
        return self._state["grams"]

    def tapes(self, device: torch.device) -> dict[int, Tape]:
        """Return the tape of each batch that was on its way, rewound."""
        assert self._state is not None
        found = {}
        for run, entry in self._state["runs"].items():
            tape = Tape()
            tape.events = [Event(what, description) for what, description in entry["events"]]
            tensors = [self._read_tensor(*place, device=device) for place in entry["tensors"]]
            for (file, *_), tensor in zip(entry["tensors"], tensors, strict=True):
                tape.handles.append(Handle.of(tensor, file))
            tape.rewind(tensors)
            found[int(run)] = tape
        return found

    def _read_tensor(
        self, file: str | None, dtype: str, size: Sequence[int], stride: Sequence[int], *, device: torch.device
    ) -> Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        if file is None:
            value = float("nan") if kind.is_floating_point else 0
            return torch.full((), value, dtype=kind, device=device).expand(tuple(size))
        content = torch.from_numpy(self._read(file)).view(kind)
        order = _order(size, stride)
        if order is None:
            return content.reshape(tuple(size)).to(device)
        back = sorted(range(len(order)), key=order.__getitem__)
        return content.reshape([size[k] for k in order]).permute(back).to(device)


def _described(tape: Tape) -> dict[str, Any]:
    return {
        "events": [[event.what, event.description] for event in tape.events],
        "tensors": [
            [handle.file, str(handle.dtype).removeprefix("torch."), list(handle.size), list(handle.stride)]
            for handle in tape.handles
        ],
    }


def _order(size: Sequence[int], stride: Sequence[int]) -> list[int] | None:
    """Return the axes from the widest stride to the narrowest, or None where they do not lie without gaps."""
    order = sorted(range(len(size)), key=lambda k: (-stride[k], -size[k], k))
    expected = 1
    for k in reversed(order):
        if size[k] != 1 and stride[k] != expected:
            return None
        expected *= size[k]
    return order


def _dense(tensor: Tensor) -> Tensor:
    """Return the elements in the order of memory, flat; in the order of axes where they do not fill it."""
    order = _order(tensor.shape, tensor.stride())
    return (tensor if order is None else tensor.permute(order)).contiguous().reshape(-1)
