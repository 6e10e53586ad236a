"""Two checkpoints in, one fused checkpoint out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..arithmetic.curvature import Curvatures
from ..checkpoint import open_checkpoint
from ..checkpoint.output.encoding import Encoding
from ..checkpoint.output.encoding_sink import EncodingSink
from ..checkpoint.output.folder_sink import WRITERS, FolderSink
from ..checkpoint.output.guard import SINGLE_FILE, refuse_output
from ..checkpoint.output.layout import Layout, OutputTensor, make_layout
from ..checkpoint.output.processes import Processes
from ..checkpoint.output.sink import Sink
from ..checkpoint.output.workspace import beside
from ..checkpoint.source import reading
from ..checkpoint.special_tokens import TokenIds
from ..checkpoint.tokens import other_tokens
from ..device import float64_device, torch_device
from ..disk_space import free_bytes, taken_bytes
from ..errors import MethodError, OutputError, Way
from ..methods import Method
from ..methods.two_sided import title_under
from ..patch.sink import FEW_FRAMES, FRAME_BYTES, PatchSink
from ..places.names import size_told
from ..plan.companions import Companions, account
from ..plan.configuration import CONFIG, Configuration, Reshape, configuration
from ..plan.encoding import encodings
from ..plan.plan import Plan, idle_models, make_plan, swapped
from ..progress import Progress, silent
from ..record.card import model_card
from ..record.input_digests import InputDigests
from ..record.manifest import DIGESTS, FileRecord, Manifest, installed_version, make_manifest
from ..record.records import TensorRecord
from .allocator import return_large_blocks
from .backend import SPARE_BUFFERS, Backend
from .bill import Bill, bill_of, encoding_bytes
from .loop import run
from .rounding import InputFactors, uniforms
from .settings import Settings
from .share import share_of
from .staged import run_as_measured
from .task import Context

logger = logging.getLogger(__name__)

FEEDS_BACK = ("auto", "error-feedback")
NO_MODEL = {"why_not": "a single file was written, and no model that could run"}
NOT_COMPARED = {"why_not": "a patch was written, and no model that could run"}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run takes. `memory` is private to the process; `mapped` pages belong to the page cache."""

    bytes_read: int
    bytes_written: int
    num_files: int
    memory: int
    mapped: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A fuse that is planned and checked, with nothing written yet.

    Attributes:
        options: Of the method, as the manifest has them: where tensors have their own, as the recipe says it.
        companions: What is copied beside the weights.
        encodings: Tensors that are written as codes, by name.
        configuration: What `config.json` and `generation_config.json` will say.
        finish: Changes what was copied beside the weights, in the folder that it is given; or None.
        called: What the model card calls the output. Default: its own name, a patch's without its ending.
        scores: What the model card says that it reached, by model: it was scored before it was written.
        processes: That share the work.
    """

    plan: Plan
    layout: Layout
    options: Mapping[str, Any]
    settings: Settings
    output: Path
    configuration: Configuration
    companions: Companions
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    finish: Callable[[Path], None] | None = None
    called: str | None = None
    scores: Mapping[str, Mapping[str, float]] | None = None
    processes: Processes = field(default_factory=Processes)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What `config.json` will say; None where there is none."""
        return self.configuration.files.get(CONFIG)

    @property
    def method(self) -> Method:
        """The method of all tensors that have none of their own."""
        return self.plan.method

    @property
    def title(self) -> str:
        """What makes the output: `two-sided curvature, then TIES`."""
        return title_under(type(self.method), protects=self.settings.protection is not None)

    @property
    def has_products(self) -> bool:
        """Whether whole matrices are multiplied or factorised, as a library does it."""
        protection = self.settings.protection
        return self.method.loads_torch or (protection is not None and protection.needs_gram)

    def recorded(self) -> dict[str, Any]:
        """Return the settings that the manifest has; with the accelerator where products of matrices are its own."""
        settings = self.settings
        if not self.has_products or settings.device in ("auto", "cpu"):
            return settings.recorded()
        kind = float64_device(torch_device(settings.device)).type
        return {**settings.recorded(), **({} if kind == "cpu" else {"device": kind})}

    def needs(self) -> Needs:
        """Return what the run takes, from headers alone."""
        backend = self.backend()
        largest = max((step.bytes_read for step in self.plan.steps), default=0)
        return Needs(
            bytes_read=self.plan.bytes_read,
            bytes_written=sum(shard.nbytes for shard in self.layout.shards),
            num_files=len(self.layout.shards),
            memory=self.bill(backend).expected,
            mapped=min(backend.threads * largest, self.plan.bytes_read),
        )

    def bill(self, backend: Backend) -> Bill:
        """Return what the run takes of memory.

        Raises:
            MemoryBudgetError: A tensor that is worked on whole takes more than the budget.
        """
        settings = self.settings
        bill = bill_of(
            self.plan.steps,
            self.method,
            settings.protection,
            backend,
            settings.memory,
            unlimited=lambda: replace(settings, memory=None).backend(self.plan),
            loads_torch=self.has_products or settings.device not in ("auto", "cpu"),
        )
        frames = (backend.threads + FEW_FRAMES) * FRAME_BYTES if settings.emit == "patch" else 0
        strips = encoding_bytes(tuple(self.encodings.values()), feedback=settings.rounding in FEEDS_BACK)
        return replace(bill, process=bill.process + frames, tiles=bill.tiles + backend.threads * strips)

    def backend(self) -> Backend:
        """Return what the run computes with."""
        return self.settings.backend(self.plan)


def prepare(
    base: Path,
    tuned: Sequence[Path],
    *,
    output: Path,
    method: Method,
    settings: Settings | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Open the inputs, plan from their headers and check the output's place and the free disk.

    Raises:
        SculptError: Anything that could be found out before the long part starts.
    """
    settings = settings or Settings()
    method = method.for_models(settings.num_seen(method, len(tuned)))
    refuse_output(output, [base, *tuned], settings.kind(output), overwrite=overwrite)
    opened = open_checkpoint(base)
    models = [opened, *(open_checkpoint(path, opened) for path in tuned)]
    plan = make_plan(models, lambda _: method, settings.request())
    plan = replace(plan, warnings=(*idle_models(models), *swapped(models)), notes=(*plan.notes, *other_tokens(models)))
    return prepare_plan(plan, output=output, settings=settings, options=method.options())


def _refuse_unprotected(method: Method, settings: Settings) -> None:
    if method.protects and settings.protection is None:
        raise MethodError(
            f"{method.title} needs a protected base",
            ways=[Way(option="protect", value="default", effect="protects it on the general set that ships")],
        )


def prepare_plan(
    plan: Plan,
    *,
    output: Path,
    settings: Settings,
    options: Mapping[str, Any] | None = None,
    reshape: Reshape = dict,
    tokens: TokenIds | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Prepared:
    """Lay out the output of a plan and check the free disk.

    Args:
        options: In place of the method's, for the manifest.
        reshape: Makes the output's configuration of the one that is copied, where layers were moved.
        tokens: What ids of special tokens become, where `finish` writes another tokenizer.

    Raises:
        SculptError: The output does not fit.
    """
    _refuse_unprotected(plan.method, settings)
    if settings.protection is not None and not plan.tuned:
        raise MethodError("protecting a base needs a tuned model, and there is none")
    if settings.device not in ("auto", "cpu"):
        torch_device(settings.device)
    companions = account(plan)
    written = configuration(plan, dtype=settings.dtype, reshape=reshape, tokens=tokens)
    coded = encodings(plan, settings.output_format)
    written = written.with_codes(coded.said)
    plan = coded.applied(replace(plan, notes=(*plan.notes, *written.notes, *companions.notes, *coded.notes)))
    tensors = output_tensors(plan, coded.by_name)
    is_file = settings.kind(output) is SINGLE_FILE
    layout = make_layout(
        tensors,
        plan.base,
        settings.max_shard_bytes,
        plan.config_from.metadata,
        file_name=output.name if is_file else None,
    )
    if is_file:
        companions = companions.of_file()
    if settings.emit == "patch":  # how small it will be is not known
        _refuse_no_patch(plan, is_coded=bool(coded.by_name))
    else:
        copied = sum(file.stat().st_size for file in companions.files.values())
        _refuse_full_disk(output, copied + sum(shard.nbytes for shard in layout.shards))
    prepared = Prepared(
        plan=plan,
        layout=layout,
        options=plan.method.options() if options is None else options,
        settings=settings,
        output=output,
        configuration=written,
        companions=companions,
        encodings=coded.by_name,
        finish=finish,
    )
    prepared.needs()  # refuses what does not fit the memory
    return prepared


def output_tensors(plan: Plan, coded: Mapping[str, Encoding] = MappingProxyType({})) -> list[OutputTensor]:
    """Return what a run of the plan writes: of tensors that are encoded their codes and scales."""
    found: list[OutputTensor] = []
    names: dict[Path, str] = {}
    for step in plan.steps:
        if step.name in coded:
            found += coded[step.name].stored
            continue
        file = step.base.file if step.base else None
        origin = None if file is None else names.setdefault(file, file.name)
        found.append(OutputTensor(name=step.name, dtype=step.dtype, shape=step.shape, origin=origin))
    return found


def _refuse_no_patch(plan: Plan, *, is_coded: bool) -> None:
    """Refuse a patch that starts from codes or ends in them, or of several models: it is of one's plain weights."""
    if "" not in plan.base.file_names:
        raise MethodError(
            f"`{plan.base.ref}` is a pipeline of several models, and a patch is of one",
            hint="without `emit` of `patch` the pipeline itself is written",
            options=["emit"],
        )
    if plan.base.decoded:
        raise MethodError(
            f"`{plan.base.ref}` is quantised, and a patch of a fuse is over plain weights",
            hint="write the model (`output_format` of `same` keeps FP8 and MXFP4), and `sculpt pack` it over its base",
            options=["emit", "output_format"],
        )
    if is_coded:
        raise MethodError(
            "a patch of a fuse makes plain weights, and this output should be codes",
            hint="choose the patch or the format",
            options=["emit", "output_format"],
        )


def _refuse_full_disk(output: Path, needed: int) -> None:
    free = free_bytes(output)
    if needed > free + taken_bytes(beside(output)):
        raise OutputError(f"`{output}` takes {size_told(needed)}, and its disk has {size_told(free)} free")


def execute(
    prepared: Prepared,
    *,
    curvature: Mapping[str, Curvatures] | Iterator[Mapping[str, Curvatures]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    refuse_changed: Callable[[], None] = lambda: None,
    compare: Callable[[Path], Mapping[str, Any]] | None = None,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    backend: Backend | None = None,
) -> Manifest:
    """Run a prepared fuse and return its manifest; of several processes each does its share.

    Args:
        curvature: By output name, what was measured of the tensor in each model, the base first; a tensor without is
            fused with H = I. An iterator gives it block by block, as it is being measured.
        provenance: Where the curvature came from, for the manifest.
        refuse_changed: Raises where what the curvature was read from has changed meanwhile.
        compare: Says of the finished folder how far the model in it is from its base, for the manifest.

    Raises:
        SculptError: Nothing is left under the output's name.
    """
    plan, settings, processes = prepared.plan, prepared.settings, prepared.processes
    staged = curvature is not None and not isinstance(curvature, Mapping)
    backend = backend or prepared.backend()
    bill = prepared.bill(backend)
    return_large_blocks()  # tensors that are seen whole, and copies of tiles, come and go
    sources = (plan.base, *plan.tuned)

    def check() -> None:
        for source in sources:
            source.refuse_changed()
        refuse_changed()

    sink = _sink(prepared, backend, bill, fingerprint=_fingerprint(prepared, provenance), overwrite=overwrite)
    encoder = _encoder(prepared, sink, curvature is not None)
    steps = plan.steps if staged else share_of(plan.steps, plan.method, processes.launch)
    inputs = InputDigests(sources, steps, settings.digest, processes.launch)
    with reading(sources), closing(inputs), sink:
        context = Context(
            plan=plan,
            curvature=curvature if isinstance(curvature, Mapping) else None,
            seed=settings.seed,
            backend=backend,
            sink=encoder or sink,
            inputs=inputs,
            keep_nonfinite=settings.policies.on_nonfinite == "keep",
            protector=settings.protector(plan),
            whole_bytes=bill.budget,
            launch=processes.launch,
        )
        if curvature is None or isinstance(curvature, Mapping):
            records = run(plan.steps, context, progress=progress)
        else:
            records = run_as_measured(context, curvature, progress=progress)
        check()
        if encoder is not None and encoder.not_fed_back and settings.rounding == "error-feedback":
            first, *others = sorted(encoder.not_fed_back)
            more = f" and {len(others)} more" if others else ""
            logger.warning("`%s`%s has no full curvature, and is rounded to the nearest", first, more)
        files, tensors = sink.digests()
        shares = processes.gather("inputs", {str(k): v for k, v in inputs.results(backend.threads).items()})
        if not processes.is_first:
            sink.commit(lambda _: None)
            return Manifest.read(prepared.output)
        if processes.are_several:
            assert isinstance(sink, FolderSink)  # a patch is one process's
            records = {name: TensorRecord.from_json(entry["record"]) for name, entry in sink.noted().items()}
        outputs = [
            FileRecord(
                name=shard.file_name,
                nbytes=shard.nbytes,
                digest=f"{settings.digest}:{files[shard.file_name]}",
            )
            for shard in prepared.layout.shards
        ]
        manifest = make_manifest(
            plan,
            prepared.options,
            settings=prepared.recorded(),
            command=command,
            curvature=provenance,
            digests={Path(file): digest for share in shares for file, digest in share.items()},
            outputs=outputs,
            records=_as_stored(records, tensors, prepared.encodings),
        )
        del tensors, records  # of very many tensors each takes megabytes, and the manifest has what they say
        check()
        whole: list[Manifest] = []
        sink.commit(lambda folder: whole.append(_add_files(folder, prepared, manifest, compare)))
        if settings.kind(prepared.output) is SINGLE_FILE:
            whole[0].write_beside(prepared.output)
    return replace(whole[0], folder=prepared.output)


def _sink(
    prepared: Prepared, backend: Backend, bill: Bill, *, fingerprint: str, overwrite: bool
) -> FolderSink | PatchSink:
    """Return what takes the tensors: a folder, or a patch that makes the same folder of the base.

    Raises:
        MethodError: Several processes are to write a patch.
    """
    new_digest = DIGESTS[prepared.settings.digest]
    if prepared.settings.emit == "patch":
        if prepared.processes.are_several:
            raise MethodError(f"a patch is written by one process, and there are {prepared.processes.count}")
        return PatchSink(
            prepared.output,
            prepared.layout,
            prepared.plan,
            prepared.settings.seed,
            fingerprint=fingerprint,
            made_by=f"fuse ({prepared.method.title})",
            new_digest=new_digest,
            threads=backend.threads,
            overwrite=overwrite,
        )
    return FolderSink(
        prepared.output,
        prepared.layout,
        fingerprint=fingerprint,
        overwrite=overwrite,
        new_digest=new_digest,
        buffers=backend.threads + SPARE_BUFFERS,
        held_bytes=bill.held,
        writers=max(WRITERS, backend.threads // 2),
        processes=prepared.processes,
    )


def _encoder(prepared: Prepared, sink: Sink, measured: bool) -> EncodingSink | None:
    """Return what encodes tensors before they come to a sink, if any are.

    Raises:
        MethodError: Errors are to be fed back, and nothing is known of the inputs.
    """
    settings = prepared.settings
    if not prepared.encodings:
        return None
    if settings.rounding == "error-feedback" and not measured:
        raise MethodError(
            "`error-feedback` needs full curvature, and there is none",
            hint="`rounding` of `nearest` or `stochastic` needs none",
            options=["rounding"],
        )
    return EncodingSink(
        sink,
        prepared.encodings,
        uniform=partial(uniforms, settings.seed) if settings.rounding == "stochastic" else None,
        feedback=InputFactors() if measured and settings.rounding in FEEDS_BACK else None,
    )


def _as_stored(
    records: dict[str, TensorRecord], digests: Mapping[str, str], coded: Mapping[str, Encoding]
) -> dict[str, TensorRecord]:
    """Return records with what the files hold: of tensors that are encoded dtype and digest of their codes.

    The very dict that is given has them then: of very many there is one of each at a time, not two.
    """
    for name, record in records.items():
        stored = coded[name].stored[0] if name in coded else None
        dtype = stored.dtype if stored is not None else record.dtype
        records[name] = replace(record, dtype=dtype, digest=digests[stored.name if stored is not None else name])
    return records


def resume_facts(prepared: Prepared, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that decides the output's bytes: a resumed run must have the same."""
    plan = prepared.plan
    return {
        "sculpt": installed_version("checkpoint-sculpt"),
        "emit": prepared.settings.emit,
        "inputs": [checkpoint.resume_key() for checkpoint in (plan.base, *plan.tuned)],
        "method": prepared.method.name,
        "options": prepared.method.options(),
        "own": {step.name: [step.method.name, step.method.options()] for step in plan.steps if step.method},
        "settings": prepared.recorded(),
        "tiles": prepared.settings.tile_elements,
        "curvature": provenance,
        "configuration": prepared.configuration.files,
        "shards": {shard.file_name: hashlib.sha256(shard.header).hexdigest() for shard in prepared.layout.shards},
    }


def _fingerprint(prepared: Prepared, provenance: Mapping[str, Any] | None) -> str:
    facts = resume_facts(prepared, provenance)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _add_files(
    folder: Path,
    prepared: Prepared,
    manifest: Manifest,
    compare: Callable[[Path], Mapping[str, Any]] | None,
) -> Manifest:
    """Copy configuration, tokenizer and code from the chosen side, write the card, then the manifest of all of it."""
    plan = prepared.plan
    if prepared.settings.kind(prepared.output) is SINGLE_FILE:
        return replace(manifest, files=prepared.companions.records, moved=NO_MODEL if compare is not None else None)
    prepared.companions.copy(folder)
    for name in prepared.configuration.rewritten:
        text = json.dumps(prepared.configuration.files[name], indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if prepared.finish is not None:
        prepared.finish(folder)
    if compare is not None:
        manifest = replace(manifest, moved=compare(folder) if prepared.settings.emit == "checkpoint" else NOT_COMPARED)
    own_name = prepared.output.name if prepared.settings.emit == "checkpoint" else prepared.output.stem
    card = model_card(plan, manifest, prepared.called or own_name, config=prepared.config, scores=prepared.scores)
    (folder / "README.md").write_text(card, encoding="utf-8")
    manifest = replace(manifest.of_folder(folder, prepared.settings.digest), files=prepared.companions.told(folder))
    manifest.write(folder)
    return manifest
