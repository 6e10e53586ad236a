"""One calibration: model, data, forward and bookkeeping put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..data.batching import Batch, Room, make_batches, sizes_in
from ..data.counting import batches_of_answers
from ..data.encoding import Encoder
from ..data.rows import Rows, open_rows
from ..data.sampling import digest_of, draw_samples, tokens_by_kind
from ..data.texts import num_positions
from ..fusion.arithmetic.curvature import Curvature
from ..fusion.checkpoint import Asked, Source, open_checkpoint
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.checkpoint.pretrained import is_encoder_decoder
from ..fusion.errors import CurvatureError, DataError, ModelError, Way
from ..fusion.launch import Launch
from ..fusion.progress import Progress, silent
from ..fusion.run.allocator import return_what_is_free
from ..fusion.run.calibration import GENERAL
from ..fusion.run.diff import changed_tensors
from ..live import skeleton
from ..live.devices import compute_dtype, pick_device
from ..live.privates import masks_padding
from ..live.units import Unit
from ..predict.general import general_rows, load_to_answer
from .forecast import matrix_bytes
from .forward.expert_tokens import measure_experts
from .forward.forward import Forward
from .forward.journal import Journal
from .forward.stopping import all_passed, final_parameter
from .forward.streamed import Streamed
from .forward.tape import Tape
from .measure.collector import Collector
from .measure.recorder import Recorder
from .measure.rules import TABLE
from .measure.statistics import ParameterStatistics, ReturnError
from .options import CalibrationOptions
from .store.gram_store import GramStore
from .store.provenance import Provenance

PACKAGES = ("checkpoint-sculpt", "numpy", "torch", "transformers")


def is_mixture(config: Any) -> bool:
    """Return whether a model routes tokens to experts, by what its config names at any depth."""
    return "expert" in str(config.to_dict())


class Session:
    """A calibration that is being run.

    Attributes:
        samples: Of all processes; `own_samples` are those of this one.
        weights: Tells how much was read.
        activations: Tells how much was held.
        collector: Tells why tensors have no statistics.
        journal: Set before `blocks` to make the run resumable.
        gram_file: Set before `blocks` to keep Σ x·xᵀ of finished tensors there, not in memory.
    """

    def __init__(
        self,
        checkpoint: Asked | Source,
        options: CalibrationOptions,
        *,
        progress: Progress = silent,
        processes: Processes | None = None,
        wanted: frozenset[str] | None = None,
    ) -> None:
        """Open model and data.

        Args:
            processes: That share the samples, and have met where they are to share the model's own answers.
            wanted: Names of the tensors to measure; None is all of them, or those that `only_changed` finds.
        """
        self.options = options
        self.processes = processes or Processes(Launch())
        self.progress = progress
        self.journal: Journal | None = None
        self.gram_file: Path | None = None
        self.grams: GramStore | None = None
        is_open = isinstance(checkpoint, Source)
        self.checkpoint = checkpoint if is_open else open_checkpoint(checkpoint, options.only_changed)
        self.device = pick_device(options.device)
        self.dtype = compute_dtype(options.dtype, self.checkpoint, self.device)
        self._is_partial = wanted is not None or options.only_changed is not None
        self.wanted = frozenset(self.checkpoint.tensors) if wanted is None else wanted
        for glob in options.full:
            if not any(fnmatchcase(name, glob) for name in self.checkpoint.tensors):
                raise CurvatureError(f"`{glob}` matches no tensor of `{self.checkpoint.ref}`", options=["full"])
        if options.only_changed is not None:
            self.wanted &= changed_tensors(self.checkpoint, open_checkpoint(options.only_changed))
        self.skeleton = skeleton.build(
            self.checkpoint,
            auto_class=options.auto_class,
            dtype=self.dtype,
            device=self.device,
            seed=options.seed,
            trust_remote_code=options.trust_remote_code,
        )
        self.model = self.skeleton.model
        self._draw()
        self._prepare()

    def _draw(self) -> None:
        options = self.options
        encoder = Encoder(
            self.skeleton.folder,
            self.model,
            max_length=options.max_length,
            options=options,
            ends_texts=True,
            trust_remote_code=options.trust_remote_code,
        )
        if options.data is None and "input_ids" not in encoder.arguments:
            raise DataError(
                f"`{type(self.model).__name__}` takes no text, so it cannot be measured on the text that ships",
                ways=[Way(option="data", effect="names samples that the model is for")],
            )
        self._counts_all = options.count == "all"
        with self._rows(encoder) as rows:
            self.data_name, self.max_length = rows.name, encoder.max_length
            self.samples = draw_samples(
                rows,
                encoder,
                count=options.samples,
                seed=options.seed,
                usable=lambda example: self._counts_all or example.num_predicted > 0,
            )
        self.own_samples = self.samples[self.processes.rank :: self.processes.count]

    def _rows(self, encoder: Encoder) -> AbstractContextManager[Rows]:
        """Return what the samples are drawn from; of the general set, what this model can be asked too."""
        options = self.options
        if str(options.data) != GENERAL:
            return nullcontext(open_rows(options.data, options.media, fields=options.fields))
        return general_rows(
            self.checkpoint,
            encoder,
            kinds=options.kinds,
            chats=options.chats,
            seed=options.seed,
            dtype=options.dtype,
            load=lambda: load_to_answer(
                self.checkpoint,
                device=options.device,
                dtype=options.dtype,
                auto_class=options.auto_class,
                trust_remote_code=options.trust_remote_code,
            ),
            processes=self.processes if self.processes.have_met else None,
            answering=lambda count: self.progress(0, 0, f"its own answers: {count}"),
        )

    def _prepare(self) -> None:
        self.recorder = Recorder(TABLE)
        if self.options.all_experts or (not self._counts_all and is_mixture(self.model.config)):
            measure_experts(self.model, self.recorder, everywhere=self.options.all_experts)
        self._sources = {
            target: made.source_names for made in self.skeleton.names.assemblies for target in made.targets
        }
        self._streamed = Streamed.of(
            self.checkpoint,
            self.skeleton,
            self.recorder,
            device=self.device,
            dtype=self.dtype,
            memory=self.options.memory,
            statistics_of=self._statistics_of,
        )
        self.units, self.weights = self._streamed.units, self._streamed.weights
        self.activations = self._streamed.activations
        self.collector = Collector(self.checkpoint, self.skeleton, self.weights.statistics(), self.wanted)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations.__exit__()

    def _batches(self) -> list[Batch]:
        options = self.options
        room = Room(samples=options.batch_size, tokens=options.most_tokens)
        if not self._counts_all:
            return batches_of_answers(
                self.own_samples,
                room,
                may_pad=masks_padding(self.model) and not is_mixture(self.model.config),
                looks_back=self.model.can_generate() and not is_encoder_decoder(self.model.config),
                sizes=sizes_in(self.model.config),
                max_length=num_positions(self.model),
            )
        return make_batches(
            self.own_samples,
            room,
            may_pad=masks_padding(self.model) and not is_mixture(self.model.config),
            sizes=sizes_in(self.model.config),
            max_length=num_positions(self.model),
        )

    def _statistics_of(self, name: str, shape: tuple[int, ...]) -> ParameterStatistics | None:
        sources = self._sources[name]
        if not self.wanted.intersection(sources):
            return None
        wants_gram = any(fnmatchcase(source, glob) for source in sources for glob in self.options.full)
        return ParameterStatistics(name, shape, wants_gram=wants_gram, last=self.recorder.last_product)

    def blocks(self, *, may_return: bool = False) -> Iterator[dict[str, Curvature]]:
        """Yield the curvature that is whole, unit by unit; of what is used throughout, such as a tied embedding, last.

        Args:
            may_return: Let a model come back to a unit whose statistics were yielded; the last block has them again.

        Raises:
            ModelError: The model fails, or comes back to a unit against `may_return`.
            CurvatureError: An activation is not finite.
            ReturnError: It comes back to a unit whose Σ x·xᵀ is in the store.
        """
        journal, once = self.journal, not may_return or self.gram_file is not None
        forward = self._streamed.forward(journal)
        forward.before = self._before
        tapes = self._resume(forward)
        total = len(self.units)
        self.progress(len(forward.passed), total, "calibrate")
        for unit in self._passed_units(forward, tapes, may_return=may_return):
            block = self._block(once=once)
            if journal is not None and forward.is_kept:
                journal.write(sorted(forward.passed), forward.tapes(), *self._settled(), self.grams)
            self.progress(min(len(forward.passed), total), total, unit.name)
            if self.options.full:
                return_what_is_free()  # else holes between matrices add up, unit by unit
            if block:
                yield block
            if self._is_partial and not forward.comes_back() and self._has_all(forward):
                break
        block = self._block(everything=True, once=once)
        self.progress(total, total, "calibrate")
        if block:
            yield block

    def _passed_units(self, forward: Forward, tapes: dict[int, Tape] | None, *, may_return: bool) -> Iterator[Unit]:
        """Yield units as all batches have passed them; refuse a model that comes back, unless it may."""
        try:
            for unit in forward.run(self._batches(), tapes):
                if not may_return:
                    self._check_not_returned(unit.name)
                yield unit
        except ReturnError as error:
            if not may_return:
                self._check_not_returned(str(error))
            raise

    def _has_all(self, forward: Forward) -> bool:
        return all_passed(self.units, forward.passed, self.weights.statistics())

    def _resume(self, forward: Forward) -> dict[int, Tape] | None:
        """Return the tapes of a run that was killed, with its statistics restored; None where there was none."""
        journal = self.journal
        resumes = journal is not None and journal.open()
        if self.gram_file is not None:
            self.grams = GramStore(self.gram_file, journal.grams_state() if journal is not None and resumes else None)
        if journal is None or not resumes:
            return None
        journal.restore_statistics(self.weights.statistics())
        for index in journal.passed:
            self.weights.skip(self.units[index])
        forward.passed.update(journal.passed)
        return journal.tapes(self.device)

    def _block(self, *, everything: bool = False, once: bool) -> dict[str, Curvature]:
        found = self.collector.settled(None if everything else self._open_parameters(), once=once)
        return found if self.grams is None else self.grams.keep(found)

    def _check_not_returned(self, place: str) -> None:
        name = self.collector.returned_to()
        if name is not None:
            raise ModelError(
                f"`{type(self.model).__name__}` runs `{place}` more than once, so the statistics of `{name}` "
                f"were not complete",
                hint="calibrate first, then give the fuse the statistics as `hessian`",
                options=["hessian"],
            )

    def _open_parameters(self) -> set[str]:
        """Return the parameters that a later unit may add to."""
        return self.weights.unfinished() | self.weights.pinned()

    def _settled(self) -> tuple[dict[str, ParameterStatistics], dict[str, ParameterStatistics]]:
        """Return the statistics that no later unit adds to, and the others."""
        unfinished = self._open_parameters()
        by_name = {entry.name: entry for entry in self.weights.statistics().values()}
        done = {name: entry for name, entry in by_name.items() if name not in unfinished}
        return done, {name: entry for name, entry in by_name.items() if name in unfinished}

    def _before(self, unit: Unit) -> None:
        self.recorder.final = final_parameter(self.model, self.units, unit, self.weights.statistics())

    def resume_key(self) -> dict[str, Any]:
        """Return what tells this calibration from any other, beside where its statistics come from."""
        return {
            "options": repr(self.options),
            "checkpoint": self.checkpoint.resume_key(),
            "beside": self.checkpoint.companions_key(),
            "wanted": sorted(self.wanted),
        }

    def bytes_written(self) -> int:
        """Return what goes to the disk at least: statistics, whole matrices twice, and what is parked of one unit."""
        infos = [self.checkpoint.tensors[name] for name in self.wanted]
        whole = matrix_bytes(info for info in infos if any(fnmatchcase(info.name, glob) for glob in self.options.full))
        sums = sum(8 * info.shape[-1] for info in infos if info.shape)
        hidden = getattr(self.model.config, "hidden_size", 0)
        parked = sum(sample.num_tokens for sample in self.own_samples) * hidden * self.dtype.itemsize
        return sums + 2 * whole + parked

    def provenance(self) -> Provenance:
        """Return where the statistics come from."""
        return Provenance(
            model=self.checkpoint.ref.name,
            model_fingerprint=self.checkpoint.fingerprint,
            model_class=type(self.model).__name__,
            data=self.data_name,
            data_digest=digest_of(self.samples),
            num_samples=len(self.samples),
            num_tokens=sum(s.num_tokens if self._counts_all else s.num_counted for s in self.samples),
            max_length=self.max_length,
            seed=self.options.seed,
            dtype=str(self.dtype).removeprefix("torch."),
            all_experts=self.options.all_experts,
            kinds=tuple(sorted(tokens_by_kind(self.samples).items())),
            kind_samples=tuple(sorted(Counter(s.kind for s in self.samples if s.kind is not None).items())),
            versions=_versions(),
        )


def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)
