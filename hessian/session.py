"""One calibration: model, data, forward and bookkeeping put together."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from ..fusion.checkpoint import open_checkpoint
from ..fusion.curvature import Curvature
from ..fusion.errors import CurvatureError, DataError, ModelError
from . import skeleton
from .activations import Activations
from .batching import Sample, make_batches, sizes_in
from .calibration import CalibrationOptions, Progress
from .changed import changed_tensors
from .conversions import num_rows
from .diagonal import DiagonalHessian, Provenance, add_curvature
from .encoding import Encoder
from .forward import Forward
from .journal import Journal
from .names import Recipe
from .parallel import Processes, add_up, join, own_device, wait
from .recorder import Recorder
from .rows import Rows, chosen, drawn, open_rows
from .statistics import ParameterStatistics, Terms
from .tape import LostError
from .units import Unit, find_units
from .weights import Weights

logger = logging.getLogger(__name__)

PACKAGES = ("checkpoint-sculpt", "numpy", "torch", "transformers")


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is an accelerator where there is one.

    Raises:
        ModelError: torch does not know it, or it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"the device `{name}` cannot be used: {reason}") from error


def is_mixture(config: Any) -> bool:
    """Return whether a model routes tokens to experts, by what its config names."""
    configs = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    return any("expert" in key for entry in configs if entry is not None for key in entry.to_dict())


class Session:
    """A calibration that is being run.

    Attributes:
        weights: Tells how much was read.
        activations: Tells how much was held.
    """

    def __init__(
        self,
        checkpoint: Path,
        options: CalibrationOptions,
        *,
        progress: Progress | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.options = options
        self.progress = progress or _silent
        self.checkpoint = open_checkpoint(checkpoint, options.only_changed)
        self.device = pick_device(options.device)
        self.dtype = skeleton.compute_dtype(options.dtype, self.checkpoint, self.device)
        self.wanted = (
            changed_tensors(self.checkpoint, options.only_changed)
            if options.only_changed is not None
            else frozenset(self.checkpoint.tensors)
        )
        self.skeleton = skeleton.build(
            self.checkpoint,
            auto_class=options.auto_class,
            dtype=self.dtype,
            device=self.device,
            seed=options.seed,
            trust_remote_code=options.trust_remote_code,
        )
        self.model = self.skeleton.model
        self.samples = self._encode()
        self.own_samples = self.samples[share[0] :: share[1]]
        self.units = find_units(self.model)
        self.recorder = Recorder()
        self.activations = Activations(_budget(options.memory))
        self.recorder.activations = self.activations
        self.activations.is_weight = self.recorder.is_watched
        self.journal: Journal | None = None
        self._sources = {
            target: recipe.source_names for recipe in self.skeleton.names.recipes for target in recipe.targets
        }
        self.weights = Weights(
            self.checkpoint,
            self.skeleton,
            self.units,
            self.recorder,
            device=self.device,
            statistics_of=self._statistics_of,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations.__exit__()

    # Data

    def _encode(self) -> list[Sample]:
        options = self.options
        rows = open_rows(options.data)
        self.data_name = rows.name
        encoder = Encoder(
            self.skeleton.folder,
            self.model,
            max_length=options.max_length,
            trust_remote_code=options.trust_remote_code,
        )
        self.max_length = encoder.max_length
        samples = self._windows(rows, encoder) if rows.documents else self._one_a_row(rows, encoder)
        if not samples:
            raise DataError(f"`{rows.name}` gives no token to run the model on")
        return samples

    def _windows(self, rows: Rows, encoder: Encoder) -> list[Sample]:
        """Return samples drawn among all pieces of running text, in the order of the text."""
        pieces = [sample for number in range(rows.count) for sample in encoder.samples(rows, number)]
        return [pieces[k] for k in sorted(chosen(self.options.samples, len(pieces), self.options.seed))]

    def _one_a_row(self, rows: Rows, encoder: Encoder) -> list[Sample]:
        """Return the samples of rows drawn; rows that hold nothing are replaced, and said."""
        found: dict[int, Sample] = {}
        empty = 0
        for number in drawn(self.options.samples, rows.count, self.options.seed):
            if len(found) >= self.options.samples:
                break
            samples = list(encoder.samples(rows, number))
            if samples:
                found[number] = samples[0]
            else:
                empty += 1
        if empty:
            logger.warning("%d rows of `%s` hold nothing and were left out", empty, rows.name)
        return [found[number] for number in sorted(found)]

    def data_digest(self) -> str:
        """Return a digest of all inputs, in the order in which they were drawn."""
        digest = xxhash.xxh3_128()
        for sample in self.samples:
            for key in sorted(sample.inputs):
                value = sample.inputs[key].contiguous()
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.numpy().tobytes())
        return f"xxh3-128:{digest.hexdigest()}"

    def _batches(self) -> Sequence[Any]:
        return make_batches(
            self.own_samples,
            self.options.batch_size,
            may_pad=not is_mixture(self.model.config),
            sizes=sizes_in(self.model.config),
            max_length=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
        )

    # Statistics

    def _statistics_of(self, name: str, shape: tuple[int, ...]) -> ParameterStatistics | None:
        sources = self._sources[name]
        if not self.wanted.intersection(sources):
            return None
        wants_gram = any(fnmatchcase(source, glob) for source in sources for glob in self.options.full)
        return ParameterStatistics(name, shape, wants_gram=wants_gram)

    def blocks(self) -> Iterator[dict[str, Curvature]]:
        """Yield the statistics of each tensor once, as they become whole.

        Raises:
            ModelError: The model fails, or returns to a block that was handed out.
            CurvatureError: An activation is not finite.
        """
        journal, tapes = self.journal, None
        forward = Forward(self.model, self.units, self.weights, self.recorder, self.activations, self.device, journal)
        forward.before = self._before
        if journal is not None and journal.open():
            journal.restore_statistics(self.weights.statistics())
            tapes = journal.tapes(self.device)
            for index in journal.passed:
                self.weights.skip(self.units[index])
            forward.passed.update(journal.passed)
        pending = {id(recipe): recipe for recipe in self.skeleton.names.recipes}
        twins = self._twins()
        total = len(self.units)
        self.progress(0, total, "calibrate")
        for done, unit in enumerate(forward.run(self._batches(), tapes), 1 + len(forward.passed)):
            if journal is not None:
                journal.write(sorted(forward.passed), forward.tapes(), *self._settled())
            finished = self._finished(pending, twins)
            self.progress(min(done, total), total, unit.name)
            if finished:
                yield finished
            if self._all_passed(forward):
                break
        last = self._finished(pending, {}, everything=True)
        for first, second in sorted(set(twins.values())):
            if first in last and second in last:
                both = add_curvature(last[first], last[second])
                last[first] = last[second] = both
        self.progress(total, total, "calibrate")
        if last:
            yield last

    def _settled(self) -> tuple[dict[str, ParameterStatistics], dict[str, ParameterStatistics]]:
        """Return the statistics that no later unit adds to, and the others."""
        unfinished = self.weights.unfinished() | self.weights.pinned()
        by_name = {entry.name: entry for entry in self.weights.statistics().values()}
        done = {name: entry for name, entry in by_name.items() if name not in unfinished}
        return done, {name: entry for name, entry in by_name.items() if name in unfinished}

    def _before(self, unit: Unit) -> None:
        """Let the forward end at the model's output head if nothing else is wanted after it."""
        self.recorder.final = None
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if head is not unit.module or getattr(head, "bias", None) is not None:
            return
        statistics = self.weights.statistics()
        own = {id(statistics[name]) for name in unit.parameters if name in statistics}
        later = [
            name
            for other in self.units[unit.index + 1 :]
            for name in other.parameters
            if name in statistics and id(statistics[name]) not in own
        ]
        weight = statistics.get(f"{unit.name}.weight")
        if not later and weight is not None:
            self.recorder.final = weight

    def _all_passed(self, forward: Forward) -> bool:
        if self.options.only_changed is None:
            return False
        statistics = self.weights.statistics()
        return all(
            unit.index in forward.passed or not any(name in statistics for name in unit.parameters)
            for unit in self.units
        )

    def _twins(self) -> dict[str, tuple[str, str]]:
        """Return the tensors that the config ties but the checkpoint stores twice, equal: each is used in both ways."""
        by_target = {r.targets[0]: r.source_names[0] for r in self.skeleton.names.recipes if not r.steps}
        found = {}
        for target, source in getattr(self.model, "all_tied_weights_keys", {}).items():
            first, second = by_target.get(source), by_target.get(target)
            if first is None or second is None or first == second:
                continue
            if np.array_equal(self.checkpoint.raw(first).view(np.uint8), self.checkpoint.raw(second).view(np.uint8)):
                found[first] = found[second] = (first, second)
        return found

    def _finished(
        self, pending: dict[int, Recipe], held: Mapping[str, object], *, everything: bool = False
    ) -> dict[str, Curvature]:
        """Return the statistics of tensors all of whose parameters no later unit uses, and take them off `pending`."""
        unfinished = set() if everything else self.weights.unfinished() | self.weights.pinned()
        statistics = self.weights.statistics()
        found: dict[str, Curvature] = {}
        for key, recipe in list(pending.items()):
            if any(target in unfinished for target in recipe.targets) or held.keys() & set(recipe.source_names):
                continue
            del pending[key]
            terms = {t: statistics[t].finish() for t in recipe.targets if t in statistics and statistics[t].seen}
            for name, moved in recipe.pull_back(terms).items():
                if name in self.wanted:
                    found[name] = self._curvature(name, moved)
        return found

    def _curvature(self, name: str, terms: Terms) -> Curvature:
        if not all(np.isfinite(term).all() for term in terms.sums):
            raise CurvatureError(
                f"the inputs of `{name}` hold NaN or infinity",
                hint="a wider `--dtype` may help; float16 overflows at 65504",
            )
        return Curvature(terms=terms.sums, num_tokens=num_rows(terms), gram=terms.gram)

    def why_missing(self, found: Mapping[str, Curvature]) -> dict[str, str]:
        """Return for each tensor of the checkpoint without statistics the reason."""
        statistics = self.weights.statistics()
        targets = {s: r.targets for r in self.skeleton.names.recipes for s in r.source_names}
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        reasons = {}
        for name, info in self.checkpoint.tensors.items():
            if name in found:
                continue
            own = [statistics[t] for t in targets.get(name, ()) if t in statistics]
            ops = sorted({op for entry in own for op in entry.ops})
            if name not in targets:
                reason = f"no part of `{type(self.model).__name__}`"
            elif not info.stored.fusible:
                reason = "not a float tensor"
            elif not parameters.intersection(targets[name]):
                reason = "a buffer, not a parameter"
            elif name not in self.wanted:
                reason = "the same as in the base"
            elif any(entry.seen for entry in own):
                reason = "made by a conversion that statistics cannot be moved back through"
            elif ops:
                reason = f"used by `{'`, `'.join(ops)}`, which gives it no inputs of its own"
            else:
                reason = "never reached by the data"
            reasons[name] = reason
        return reasons

    def provenance(self) -> Provenance:
        """Return where the statistics come from."""
        versions = []
        for package in PACKAGES:
            try:
                versions.append((package, version(package)))
            except PackageNotFoundError:
                continue
        return Provenance(
            model=self.checkpoint.path.resolve().name,
            model_fingerprint=self.checkpoint.fingerprint,
            model_class=type(self.model).__name__,
            data=self.data_name,
            data_digest=self.data_digest(),
            num_samples=len(self.samples),
            num_tokens=sum(sample.num_tokens for sample in self.samples),
            max_length=self.max_length,
            seed=self.options.seed,
            dtype=str(self.dtype).removeprefix("torch."),
            versions=tuple(versions),
        )


def _silent(_done: int, _total: int, _what: str) -> None:
    pass


def _budget(memory: int | None) -> int:
    if memory is not None:
        return memory
    import psutil

    return psutil.virtual_memory().available // 2


def run(
    checkpoint: Path,
    options: CalibrationOptions,
    *,
    output: Path | None,
    resume: bool,
    progress: Progress | None,
) -> DiagonalHessian:
    """Return the statistics of a whole calibration, and write them."""
    processes = join(options.device)
    options = replace(options, device=own_device(options.device))
    try:
        return _run(checkpoint, options, output, processes, resume=resume, progress=progress)
    except LostError as error:
        logger.warning("the run that was killed cannot be gone on with, so it starts anew: %s", error)
        shutil.rmtree(_journal_folder(output, processes), ignore_errors=True)
        return _run(checkpoint, options, output, processes, resume=resume, progress=progress)


def _journal_folder(output: Path | None, processes: Processes) -> Path:
    assert output is not None
    share = f"-{processes.rank}-of-{processes.count}" if processes.count > 1 else ""
    return output.with_name(f"{output.name}{share}.partial")


def _run(
    checkpoint: Path,
    options: CalibrationOptions,
    output: Path | None,
    processes: Processes,
    *,
    resume: bool,
    progress: Progress | None,
) -> DiagonalHessian:
    with Session(checkpoint, options, progress=progress, share=(processes.rank, processes.count)) as session:
        provenance = session.provenance()
        if output is not None and resume:
            folder = _journal_folder(output, processes)
            session.journal = Journal(folder, {**asdict(provenance), "options": repr(options)})
        curvatures: dict[str, Curvature] = {}
        for block in session.blocks():
            curvatures |= block
        total, why_missing = add_up(curvatures, session.why_missing(curvatures), processes)
        hessian = DiagonalHessian(curvatures=total, provenance=provenance, why_missing=why_missing)
        if output is not None and processes.is_first:
            hessian.save(output)
        wait(processes)
        if session.journal is not None:
            session.journal.discard()
    return hessian
