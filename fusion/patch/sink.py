"""A patch as the output of a fuse: the model that it makes is never written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import xxhash

from ..arithmetic.passes import Map
from ..arithmetic.tile import RawTile
from ..checkpoint.bytes_of import as_bytes
from ..checkpoint.output.layout import Layout
from ..checkpoint.output.sink import Sink
from ..checkpoint.output.workspace import told
from ..dtypes import DTYPES
from ..plan.plan import Plan, Step
from ..transforms.scale import add_scaled
from .contents import Contents, FileEntry, TensorEntry, inflated
from .contexts import Seed
from .forms import FRAME, form_of, num_words
from .frames import CodedFrame, Frames, coded, in_order, joined
from .recipe import SeededRecipe, kept_words, recipe_from, recipe_of
from .reference import Reference, open_stored
from .writer import PatchWriter

FRAME_BYTES = 60 << 20  # that a frame takes while it is filled or coded
FEW_FRAMES = 2  # that are being filled, beside one that each thread codes


@final
class _Frame:
    """A frame that is filled by tiles."""

    def __init__(self, count: int, word: np.dtype, recipe: SeededRecipe | None) -> None:
        self.model = np.empty(count, word)
        self.tuned: np.ndarray | None = np.empty(count, word)
        self.recipe = recipe  # of all of it
        self.missing = count


@final
class PatchSink(Sink):
    """Writes one patch; use as a context manager and call `commit` when every tensor is there, as of `FolderSink`.

    Args:
        layout: Of the model that the patch makes.
        seed: Of the fuse's masks.
        threads: How many read the patch back.
    """

    def __init__(
        self,
        output: Path,
        layout: Layout,
        plan: Plan,
        seed: int,
        *,
        fingerprint: str,
        made_by: str,
        new_digest: Callable[[], Any],
        threads: int,
        overwrite: bool = False,
    ) -> None:
        self._layout, self._seed, self._made_by = layout, seed, made_by
        self._new_digest, self._threads = new_digest, threads
        self._base = open_stored(plan.base.ref)
        self._steps = {step.name: step for step in plan.steps}
        self._references = {step.name: self._reference(step) for step in plan.steps}
        self._writer = PatchWriter(
            output, fingerprint=fingerprint, made_by="fuse", of=len(plan.steps), overwrite=overwrite
        )
        self._frames: dict[tuple[str, int], _Frame] = {}
        self._coded: dict[tuple[str, int], CodedFrame] = {}
        self._recipes: dict[str, SeededRecipe | None] = {}
        self._is_tuned: set[str] = set()  # the fine-tune's very elements
        self._roots: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._told = threading.local()

    def _reference(self, step: Step) -> Reference:
        name = step.base.name if step.base is not None else None
        return Reference.of(self._base, name, step.dtype, step.shape)

    def __enter__(self) -> PatchSink:
        self._writer.__enter__()
        self.finished = self._writer.finished
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @contextmanager
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Give memory for elements `start … stop − 1` of a tensor; they are coded once a frame is full."""
        data = np.empty(stop - start, dtype)
        self._told.what = None
        yield data
        word = form_of(self._steps[name].dtype).word
        words, first = data.view(word), start * dtype.itemsize // word.itemsize
        recipe, tuned = self._explained(name)
        self._take(name, first, words, recipe, tuned)

    def explain(self, name: str, tile: RawTile, wanted: Map) -> None:
        """Take note of a map over a tile."""
        del name
        self._told.what = tile, wanted

    def _explained(self, name: str) -> tuple[SeededRecipe | None, np.ndarray | None]:
        """Return what recipe made what is in this thread's room, if one did, and what it was made of, if that helps."""
        if self._told.what is None:
            return None, None
        tile, wanted = self._told.what
        with self._lock:
            if name not in self._recipes:
                seed = Seed(seed=self._seed, name=self._steps[name].key)
                self._recipes[name] = recipe_of(
                    wanted, tile, seed, _fused_shape(self._steps[name]), self._writer.put_root
                )
                own = len(tile.tuned) == 1 and tile.tuned[0].dtype == tile.base.dtype
                if own and wanted.function is add_scaled and wanted.arguments == (1.0,):
                    self._is_tuned.add(name)
            recipe = self._recipes[name]
        if recipe is None or tile.base.dtype != DTYPES[self._steps[name].dtype].numpy:
            return None, None  # such as a tensor that is stored in another dtype
        return recipe, kept_words(recipe, tile)

    def _take(
        self, name: str, start: int, words: np.ndarray, recipe: SeededRecipe | None, tuned: np.ndarray | None
    ) -> None:
        step = self._steps[name]
        count = num_words(step.dtype, step.num_elements)
        for k in range(start // FRAME, -(-(start + len(words)) // FRAME)):
            begin, end = k * FRAME, min((k + 1) * FRAME, count)
            with self._lock:
                frame = self._frames.get((name, k))
                if frame is None:
                    frame = self._frames[name, k] = _Frame(end - begin, words.dtype, recipe)
                if recipe is None:
                    frame.recipe = None
                if tuned is None:
                    frame.tuned = None
                own = frame.tuned
            into = slice(max(start - begin, 0), min(start + len(words), end) - begin)
            of = slice(into.start + begin - start, into.stop + begin - start)
            frame.model[into] = words[of]
            if own is not None and tuned is not None:
                own[into] = tuned[of]
            with self._lock:
                frame.missing -= into.stop - into.start
                is_full = not frame.missing
                if is_full:
                    del self._frames[name, k]
            if is_full:
                self._code(name, k, frame)

    def _code(self, name: str, k: int, frame: _Frame) -> None:
        reference, start = self._references[name], k * FRAME
        stop = start + len(frame.model)
        dtype, tuned = self._steps[name].dtype, frame.tuned if frame.recipe else None
        columns = self._steps[name].shape[-1] if self._steps[name].shape else 0
        words = reference.words(start, stop)
        found = coded(words, frame.model, dtype, start, frame.recipe, tuned, columns=columns)
        reference.release(start, stop)
        with self._lock:
            self._coded[name, k] = found

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Put a tensor that is whole into the patch; `entry` is given back by `finished` on resuming."""
        step, reference = self._steps[name], self._references[name]
        count = -(-num_words(step.dtype, step.num_elements) // FRAME)
        with self._lock:
            frames = [self._coded.pop((name, k)) for k in range(count)]
        recipe, own = self._recipes.get(name), reference.info
        known = name in self._is_tuned or (recipe is not None and all(frame.scales for frame in frames))
        said = TensorEntry(
            dtype=step.dtype,
            shape=step.shape,
            base=own.name if own else None,
            seen=reference.sample(),
            changed=any(frame.code for frame in frames),
            code="",
            recipe=recipe.entry if recipe else None,
            strength="stays" if step.action == "copy" else "scales" if known else "fixed",
        )
        self._writer.put_tensor(name, joined(frames), said, entry)

    def _frames_of(self, name: str) -> tuple[Frames, SeededRecipe | None]:
        said, step = self._writer.tensors[name], self._steps[name]
        recipe = None if said.recipe is None else recipe_from(said.recipe, said.shape, said.dtype, self._root)
        where = str(self._writer.output)
        return Frames(name, where, self._writer.code(name), step.dtype, step.num_elements), recipe

    def _root(self, name: str) -> bytes:
        if name not in self._roots:
            data = self._writer.content(name)
            self._roots[name] = b"".join(inflated(data[8:], int(data[:8].view("<u8")[0])))
        return self._roots[name]

    def _words(self, name: str) -> Iterator[np.ndarray]:
        """Yield the words of a tensor as the patch has them."""
        frames, recipe = self._frames_of(name)
        reference = self._references[name]

        def decoded(k: int) -> np.ndarray:
            return frames.decode(k, reference.words(*frames.span(k)), recipe)

        yield from in_order((partial(decoded, k) for k in range(len(frames))), self._threads)

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor that is in the patch, to check what an interrupted run left."""
        frames, recipe = self._frames_of(name)
        size = form_of(self._steps[name].dtype).word.itemsize * FRAME
        found = [
            frames.decode(k, self._references[name].words(*frames.span(k)), recipe).tobytes()
            for k in range(first_byte // size, -(-(first_byte + nbytes) // size))
        ]
        skip = first_byte % size
        return b"".join(found)[skip : skip + nbytes]

    def digests(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the hexadecimal digest of each weight file of the model, and `xxh3-128:hex` of each tensor.

        The patch is read back for it.
        """
        files, tensors = dict[str, str](), dict[str, str]()
        for shard in self._layout.shards:
            whole = self._new_digest()
            whole.update(shard.header)
            for name, _ in sorted(shard.offsets.items(), key=lambda found: found[1]):
                own = xxhash.xxh3_128()
                for words in self._words(name):
                    whole.update(as_bytes(words))
                    own.update(as_bytes(words))
                tensors[name] = f"xxh3-128:{own.hexdigest()}"
            files[shard.file_name] = whole.hexdigest()
        return files, tensors

    def commit(self, add_files: Callable[[Path], None]) -> None:
        """Let `add_files` write the other files of the model's folder, then give the patch the output's name."""
        folder = self._writer.room()
        with told(folder):
            self._layout.write_indices(folder)
            add_files(folder)
        files: dict[str, FileEntry] = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            files[name] = self._writer.put_file(name, file, self._base.folder / name if self._base.folder else None)
        shards = {s.file_name: self._writer.put_header(s.file_name, s.header) for s in self._layout.shards}
        order = [name for shard in self._layout.shards for name in shard.offsets]

        def contents(tensors: Mapping[str, TensorEntry]) -> Contents:
            return Contents(
                base=self._base.ref.name,
                made_by=self._made_by,
                strength=_common_strength(tensors),
                shards=shards,
                tensors={name: tensors[name] for name in order},
                files=files,
            )

        self._writer.commit(contents)


def _fused_shape(step: Step) -> tuple[int, ...]:
    """Return the shape of what is fused of a tensor: of a vocabulary that was resized the common rows."""
    if not step.num_elements or step.num_fused == step.num_elements:
        return step.shape
    return (step.num_fused * step.shape[0] // step.num_elements, *step.shape[1:])


def _common_strength(tensors: Mapping[str, TensorEntry]) -> float | None:
    """Return the strength of all tensors that another would scale, if they have one."""
    found = {
        entry.recipe.strength if entry.recipe is not None else 1.0
        for entry in tensors.values()
        if entry.strength == "scales"
    }
    return found.pop() if len(found) == 1 else None
