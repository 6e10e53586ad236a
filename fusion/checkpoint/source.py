"""An input: named tensors that are read piece by piece, wherever they come from."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ..errors import CheckpointError, cannot_read
from ..file_kinds import CONFIG
from ..ref import ModelRef
from .bytes_of import as_bytes
from .companions import Companion
from .file_names import FileNames
from .identity import FileIdentity, identities, refuse_changed
from .json_file import read_json
from .tensor_info import TensorInfo

if TYPE_CHECKING:
    from .adapter.low_rank import LowRank
    from .coded.coded import Coded

SAMPLE_BYTES = 4096
MANY, FEW = 8192, 512  # tensors whose names differ in numbers alone: of more than so many, a fingerprint samples a few
FORESEEN = 64  # tensors whose samples are fetched at the same time, of a model that lies elsewhere
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

Stored = tuple[Path, int, int]  # a file, the first byte there, and the one after the last


class Source(ABC):
    """The tensors of one model.

    Attributes:
        ref: What was asked for, and where it is.
        folder: The folder of configuration and tokenizer files, or None where there is none.
        files: Every file that it alone consists of, sorted by name, without the index.
        index: The index file, or None.
        tensors: Name to `TensorInfo`, in file order.
        wrappers: What was taken out of the names in its files, and of how many: it wrapped the model in training.
        is_foreign: Whether loaders read no such files: an output is laid out anew, and a model that runs is given the
            tensors.
        is_lent: Whether its configuration and tokenizer are another model's.
        file_names: What an output's weight files are called, by the folder within it: of most models one, itself.
            Where there are several, a tensor's name begins with that of its folder and a slash.
        is_elsewhere: Whether the weights are read by ranges, so that its folder holds none; a model that runs is given
            the tensors.
        said: What else somebody should know of how it was read, a sentence each.
    """

    ref: ModelRef
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    index: Path | None = None
    tensors: Mapping[str, TensorInfo]
    wrappers: Mapping[str, int] = MappingProxyType({})
    said: tuple[str, ...] = ()
    is_foreign: bool = False
    is_lent: bool = False
    file_names: Mapping[str, FileNames] = MappingProxyType({"": FileNames()})
    is_elsewhere: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how it is read, beside what is said of every model."""
        return ()

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flattened tensor, in `TensorInfo.dtype`, perhaps read-only.

        bfloat16 comes as `ml_dtypes.bfloat16`.
        """

    @abstractmethod
    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of memory held for elements that are not needed soon; with no range, of all that is held for it."""

    def foresee(self, spans: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Have ranges of a few elements fetched at the same time, by tensor, where they lie elsewhere."""
        del spans

    def _foresee_samples(self, names: Iterable[str]) -> None:
        if self.is_elsewhere:
            self.foresee({name: list(_samples(self.tensors[name])) for name in names})

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return the file bytes that `read` gives as they are; None where it computes them or no map shows them."""
        del name, start, stop

    def name_in_file(self, name: str) -> str:
        """Return what a tensor is called in its file: with what wrapped the model when it was saved."""
        return name

    def mapped(self) -> Mapping[Path, np.ndarray]:
        """Return the bytes of each file that `stored` may name."""
        return {}

    def beside(self) -> Sequence[Companion]:
        """Return all that lies in the model's own folder beside the files that its tensors are read from."""
        return ()

    def identities(self) -> Mapping[Path, FileIdentity]:
        """Return which files it is read from, as they were when it was opened."""
        return {}

    def resume_key(self) -> list[Any]:
        """Return what tells these very files from any others: more than the samples of `fingerprint`."""
        files = {file.name: identity.as_json() for file, identity in self.identities().items()}
        return [self.fingerprint, dict(sorted(files.items()))]

    def companions_key(self) -> list[list[Any]]:
        """Return what tells the files that it is shipped with from any others: a calibration reads them too."""
        found = identities(self.companions().values())
        return sorted([file.name, *identity.as_json()] for file, identity in found.items())

    def refuse_changed(self) -> None:
        """Raise CheckpointError where a file has changed since it was opened: what was read is then of two models."""
        refuse_changed(self.identities())

    def companions(self) -> Mapping[Path, Path]:
        """Return the files beside the weights that a model is shipped with, by their names within its folder."""
        return {found.name: found.file for found in self.beside() if found.left is None}

    def coded_as(self, name: str) -> Coded | None:
        """Return how a tensor that is the model's own is stored as codes; None of one that is plain, or computed."""
        del name

    @property
    def decoded(self) -> Mapping[str, int]:
        """How many tensors are decoded while they are read, by the name of their format; none where all are plain."""
        return {} if self.base is None else self.base.decoded

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves beside their tensors; of a model over another one, what the other's say."""
        return {} if self.base is None else self.base.metadata

    def low_rank(self, name: str) -> LowRank | None:
        """Return what is added to the base's tensor, where that is all that it is; None where it is not."""
        del name

    @property
    def path(self) -> Path:
        """Where it is: a folder or a file; sentences say `ref`."""
        return self.ref.path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.ref)!r}, {len(self.tensors)} tensors)"

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's `config.json`, or None where there is none."""
        file = self.folder / CONFIG if self.folder else None
        if file is None or not file.is_file():
            return None
        content = read_json(file)
        if not isinstance(content, dict):
            raise CheckpointError(f"`{file}` is not a JSON object")
        return content

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file that it alone consists of."""
        return (*self.files, self.index) if self.index else self.files

    @property
    def base(self) -> Source | None:
        """The model that this one is read through, such as an adapter's; None for one that stands alone.

        Tensors that are left as they are have the base's very `TensorInfo` objects.
        """
        return None

    @property
    def changed(self) -> frozenset[str] | None:
        """Names of the tensors that are not the base's, by headers alone; None for a model without a base."""
        base = self.base
        if base is None:
            return None
        return frozenset(name for name, info in self.tensors.items() if base.tensors.get(name) is not info)

    @property
    def changes_nothing(self) -> bool:
        """Whether it is read through a base that it leaves as it is, element by element."""
        return False

    def seems_equal(self, name: str, other: Source, its_name: str) -> bool:
        """Return whether a tensor has the elements of another model's, where a fingerprint looks."""
        info, its = self.tensors[name], other.tensors[its_name]
        if info is its:
            return True
        if (info.dtype, info.shape) != (its.dtype, its.shape):
            return False
        if info.kind.numpy is None:
            return False  # no arithmetic is offered, so nothing is known of it
        return all(
            np.array_equal(as_bytes(self.read(name, *span)), as_bytes(other.read(its_name, *span)))
            for span in _samples(info)
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, dtypes, shapes and three samples of each tensor's bytes.

        It tells fine-tunes of one model apart in milliseconds, without reading the weights: the first, middle and
        last 4 KiB of every tensor; where thousands differ in numbers alone, as experts do, of some of these. Names
        are sorted, so the split into shards does not matter. It is no proof against a forger; the manifest's file
        digests are.
        """
        digest = xxhash.xxh3_128()
        names = sorted(self.tensors)
        looked_at = _looked_at(names)
        described: dict[tuple[str, tuple[int, ...]], str] = {}
        with ExitStack() as stack:
            streams: dict[Path, Any] = {}
            for k, name in enumerate(names):
                if k % FORESEEN == 0:
                    self._foresee_samples(name for name in names[k : k + FORESEEN] if name in looked_at)
                info = self.tensors[name]
                text = described.get((info.dtype, info.shape))
                if text is None:
                    text = described[info.dtype, info.shape] = json.dumps([info.dtype, info.shape])[1:]
                digest.update(f"[{json.dumps(name)}, {text}".encode())
                if info.kind.numpy is None or name not in looked_at:
                    continue
                for start, stop in _samples(info):
                    place = self.stored(name, start, stop)
                    if place is None:
                        digest.update(as_bytes(self.read(name, start, stop)))
                        continue
                    file, first, last = place  # read, not mapped: a page fault maps a lot more than a sample
                    if file not in streams:
                        streams[file] = stack.enter_context(file.open("rb", buffering=0))
                    streams[file].seek(first)
                    digest.update(streams[file].read(last - first))
        return f"xxh3-128:{digest.hexdigest()}"


@contextmanager
def reading(sources: Sequence[Source]) -> Iterator[None]:
    """Tell errors of the file system while models are read: a file that has changed, or that cannot be read."""
    try:
        yield
    except OSError as error:
        for source in sources:
            source.refuse_changed()
        raise cannot_read(error, Path(error.filename or sources[0].path)) from error


def _looked_at(names: Sequence[str]) -> Collection[str]:
    """Return the tensors that a fingerprint samples: all, but of a kind of very many only some, evenly spaced."""
    if len(names) <= MANY:
        return frozenset(names)
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(NUMBER.sub("*", name), []).append(name)
    return {
        name
        for kind in kinds.values()
        for name in (kind if len(kind) <= MANY else [kind[i * len(kind) // FEW] for i in range(FEW)])
    }


def _samples(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Yield first elements and those after the last, of all of a small tensor, of three pieces of a large one."""
    if info.nbytes <= 3 * SAMPLE_BYTES:
        yield 0, info.num_elements
        return
    length = max(1, SAMPLE_BYTES * info.num_elements // info.nbytes)
    last = max(0, info.num_elements - length)
    for start in sorted({0, last // 2, last}):
        yield start, min(start + length, info.num_elements)
