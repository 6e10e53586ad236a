"""A patch over its base, as one model: a frame is decoded when something of it is read.

A patch may be over a model that is another patch over a base. Where it was made from that model, one follows the other.
Where both were made from the base, they stack: each tensor is the one's that changes it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np

from ..checkpoint.companions import Companion, look_beside
from ..checkpoint.folder import SAFETENSORS_INDEX
from ..checkpoint.identity import FileIdentity
from ..checkpoint.output.scratch import Scratch
from ..checkpoint.output.workspace import MARK, told
from ..checkpoint.source import Source, Stored
from ..checkpoint.tensor_info import TensorInfo
from ..checkpoint.wrappers import unwrapped
from ..dtypes import DTYPES
from ..errors import CheckpointError
from ..ref import ModelRef
from .contents import FILE, FileEntry, TensorEntry, hex_digest
from .file import PatchFile
from .forms import FRAME, form_of, num_words
from .frames import Frames, OtherBaseError
from .recipe import SeededRecipe, scaled
from .reference import Reference, open_stored

HELD = 16  # decoded frames


@final
class PatchedSource(Source):
    """The model that a patch makes of its base.

    Args:
        base: What is before the patch in `ref`, where it has been opened.
        strength: Of δ, in place of the one that the patch was written with.

    Attributes:
        patch: The opened patch.
        leaves_changes: Whether a patch below has changed what this one was made without: the model is then of both,
            and none that was packed.

    Raises:
        CheckpointError: The patch cannot be read.
        OtherBaseError: It was made from another base, as samples of every tensor tell.
    """

    def __init__(self, ref: ModelRef, base: Source | None = None, *, strength: float | None = None) -> None:
        assert ref.base is not None  # that of a patch
        self.ref, self.patch = ref, PatchFile(ref.path)
        self._base = open_stored(ref.base) if base is None else base
        self.file_names, self.is_foreign = self._base.file_names, True
        is_stack = ref.base.base is not None
        self._below = (self._base.changed or frozenset()) if is_stack else frozenset[str]()
        self.files = (*(self._base.files if is_stack else ()), ref.path)
        contents = self.patch.contents
        self.leaves_changes = False
        own = unwrapped(contents.tensors)
        self.wrappers = own.wrappers
        self._names = {name: inside for inside, name in own.names.items()}
        self._references = {inside: self._reference(entry) for inside, entry in contents.tensors.items()}
        self.tensors = {name: self._info(name, inside) for name, inside in self._names.items()}
        added = self._below - self.tensors.keys() - ({} if self._base.base is None else self._base.base.tensors).keys()
        self.tensors |= {name: info for name, info in self._base.tensors.items() if name in added}
        self.leaves_changes |= bool(added)
        self.strength = None if strength == contents.strength else strength
        if self.strength is not None:
            self._refuse_strength()
        self._scratch: Scratch | None = None
        self.folder = self._folder()
        self._frames: dict[str, Frames] = {}
        self._recipes: dict[str, SeededRecipe | None] = {}
        self._decoded: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in range(HELD)]

    def _reference(self, entry: TensorEntry) -> Reference:
        """Return what a tensor is compared with.

        Raises:
            OtherBaseError: It is another than the patch was made from.
        """
        reference = Reference.of(self._base, entry.base, entry.dtype, entry.shape)
        info = reference.info
        if entry.base is None or (info is not None and reference.sample() == entry.seen):
            return reference
        if entry.base in self._below:
            if info is not None and not entry.changed:
                self.leaves_changes = True
                return reference  # the patch below changes it, and this one leaves it alone
            raise OtherBaseError(
                f"`{entry.base}` is changed by `{self.ref.path}` and by a patch before it, `{self._base.ref.path}`",
                hint="`sculpt apply --add` adds patches up, as task arithmetic does",
            )
        state = "is not there" if info is None else "is another"
        raise OtherBaseError(
            f"`{self.ref.path}` was made from another base: `{entry.base}` {state} in `{self._base.ref}`",
            hint=f"it was made from `{self.patch.contents.base}`",
        )

    def _info(self, name: str, inside: str) -> TensorInfo:
        entry, own = self.patch.contents.tensors[inside], self._references[inside].info
        if own is not None and not entry.changed and (own.dtype, own.shape) == (entry.dtype, entry.shape):
            return own if own.name == name else own._replace(name=name)
        return TensorInfo(name=name, dtype=entry.dtype, stored=entry.dtype, shape=entry.shape, file=self.ref.path)

    def _refuse_strength(self) -> None:
        contents = self.patch.contents
        fixed = next((n for n, e in contents.tensors.items() if e.strength == "fixed" and e.changed), None)
        if contents.strength is None or fixed is not None:
            why = "its tensors have several strengths" if fixed is None else f"of `{fixed}` it holds the result alone"
            raise CheckpointError(
                f"`{self.ref.path}` can only be applied with its own strength: {why}",
                hint="a patch of the fine-tune itself takes any strength, and so does one of DARE or AdaDARE-γ",
            )

    def _folder(self) -> Path | None:
        """Return a folder with the files beside the weights: the base's own where it is the same.

        Raises:
            OtherBaseError: A file that the patch takes from the base is another there.
        """
        files, base = self.patch.contents.files, self._base.folder
        for name, entry in files.items():
            if not (entry.stored or self._below) and (base is None or not _is(base / name, entry)):
                state = "is not there" if base is None or not (base / name).is_file() else "is another"
                raise OtherBaseError(
                    f"`{self.ref.path}` was made from another base: `{name}` {state} in `{self._base.ref}`",
                    hint=f"it was made from `{self.patch.contents.base}`",
                )
        theirs = {name.as_posix() for name in self._base.companions()}
        if not files or (not any(entry.stored for entry in files.values()) and theirs == set(files)):
            return base
        self._scratch = Scratch()
        for name in files:
            if name != SAFETENSORS_INDEX and (files[name].stored or (base and (base / name).is_file())):
                self.write_file(name, self._scratch.folder / name)
        return self._scratch.folder

    def write_files(self, folder: Path) -> None:
        """Write every file that lies beside the weights into a folder."""
        for name in self.patch.contents.files:
            self.write_file(name, folder / name)

    def write_file(self, name: str, target: Path) -> None:
        """Write a file that lies beside the weights.

        Raises:
            CheckpointError: What the patch holds of it is damaged.
            OutputError: It cannot be written.
        """
        entry, base = self.patch.contents.files[name], self._base.folder
        with told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                if entry.stored:
                    stream.writelines(self.patch.stored(FILE, name, entry))
                else:
                    assert base is not None  # or it was refused
                    stream.write((base / name).read_bytes())

    @property
    def base(self) -> Source:
        """The model under the patch."""
        return self._base

    def name_in_file(self, name: str) -> str:
        """Return what a tensor is called in the file that the patch makes."""
        return self._names.get(name, name)

    def headers(self) -> Mapping[str, bytes]:
        """Return the header of each weight file that the patch makes.

        There is none where they are laid out anew, or where the model is of several patches.
        """
        if self.leaves_changes:
            return {}
        return {name: self.patch.header(name) for name in self.patch.contents.shards}

    def beside(self) -> Sequence[Companion]:
        """Return what lies beside the weights of the model that the patch makes."""
        if self._scratch is None:
            return self._base.beside()
        mark = self._scratch.folder / MARK
        return [found for found in look_beside(self._scratch.folder, ()) if found.file != mark]

    def identities(self) -> Mapping[Path, FileIdentity]:
        """Return the patch, and the base's files."""
        return {**self._base.identities(), self.patch.path: self.patch.file.identity}

    def frames(self, inside: str) -> Frames:
        """Return what is coded of a tensor, by its name in the file.

        Raises:
            CheckpointError: It is damaged.
        """
        with self._lock:
            if inside not in self._frames:
                self._frames[inside] = self.patch.frames(inside)
                self._recipes[inside] = self.patch.recipe(inside)
            return self._frames[inside]

    def decode(self, inside: str, k: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the words of a frame of a tensor, by its name in the file.

        Args:
            out: Room for them; without it they may be the base's own, read-only.

        Raises:
            OtherBaseError: The base's are others than the patch was made from.
            CheckpointError: What is coded is damaged.
        """
        frames, reference = self.frames(inside), self._references[inside]
        entry, (start, stop) = self.patch.contents.tensors[inside], frames.span(k)
        base = reference.words(start, stop)
        try:
            scales = self.strength if entry.strength == "scales" else None
            words = frames.decode(k, base, self._recipes[inside], scales, out)
        except OtherBaseError as error:
            raise OtherBaseError(f"{error.message}: `{self._base.ref}` has another") from error
        if scales is None or entry.recipe is not None or words is base or reference.info is None:
            return words
        count = max(0, min(stop, num_words(entry.dtype, reference.info.num_elements)) - start)  # beyond are new rows
        words[:count] = scaled(base[:count], words[:count], entry.dtype, scales)
        return words

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor, read-only."""
        stop = self.tensors[name].num_elements if stop is None else stop
        own = self._name_in_base(name)
        if own is not None:
            return self._base.read(own, start, stop)
        inside = self._names[name]
        entry = self.patch.contents.tensors[inside]
        kind = DTYPES[entry.dtype].numpy
        if kind is None:
            raise CheckpointError(f"`{name}` in `{self.ref}` is {entry.dtype}, which sculpt cannot read")
        each = kind.itemsize // form_of(entry.dtype).word.itemsize
        first, last = start * each, stop * each
        pieces = []
        for k in range(first // FRAME, -(-last // FRAME) if last > first else 0):
            words, begin = self._held(inside, k), k * FRAME
            pieces.append(words[max(first - begin, 0) : last - begin])
        if not pieces:
            return np.empty(0, kind)
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).view(kind)

    def _name_in_base(self, name: str) -> str | None:
        """Return what a tensor is called in the base, if it is the base's own."""
        inside = self._names.get(name)
        if inside is None:
            return name  # of the patch below
        entry, own = self.patch.contents.tensors[inside], self._references[inside].info
        is_own = own is not None and not entry.changed and (own.dtype, own.shape) == (entry.dtype, entry.shape)
        return entry.base if is_own else None

    def _held(self, inside: str, k: int) -> np.ndarray:
        key = (inside, k)
        with self._decoding[hash(key) % HELD]:  # one thread decodes, those that want the same wait
            with self._lock:
                found = self._decoded.get(key)
                if found is not None:
                    self._decoded.move_to_end(key)
                    return found
            found = self.decode(inside, k)
            found.flags.writeable = False
            with self._lock:
                self._decoded[key] = found
                while len(self._decoded) > HELD:
                    self._decoded.popitem(last=False)
            return found

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of frames that lie within these elements, and of the base's pages."""
        own = self._name_in_base(name)
        if own is not None:
            self._base.release(own, start, stop)
            return
        inside = self._names[name]
        entry = self.patch.contents.tensors[inside]
        each = max(1, DTYPES[entry.dtype].bits // 8 // form_of(entry.dtype).word.itemsize)
        stop = self.tensors[name].num_elements if stop is None else stop
        with self._lock:
            for key in [key for key in self._decoded if key[0] == inside]:
                if start * each <= key[1] * FRAME and (key[1] + 1) * FRAME <= -(-stop * each // FRAME) * FRAME:
                    del self._decoded[key]
        info = self._references[inside].info
        if info is not None and start < info.num_elements:
            self._base.release(info.name, start, min(stop, info.num_elements))

    def release_words(self, inside: str, start: int, stop: int) -> None:
        """Let go of the base's pages of words of a tensor, by its name in the file."""
        self._references[inside].release(start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where elements lie that are the base's own."""
        own = self._name_in_base(name)
        return None if own is None else self._base.stored(own, start, stop)

    def mapped(self) -> Mapping[Path, np.ndarray]:
        """Return the bytes of the base's files."""
        return self._base.mapped()


def _is(file: Path, entry: FileEntry) -> bool:
    try:
        return file.stat().st_size == entry.nbytes and hex_digest(file.read_bytes()) == entry.digest
    except OSError:
        return False
