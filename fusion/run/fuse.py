"""Two checkpoints in, one fused checkpoint out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..arithmetic.curvature import Curvatures
from ..checkpoint import open_checkpoint
from ..checkpoint.output.disk import free_bytes
from ..checkpoint.output.folder_sink import FolderSink
from ..checkpoint.output.guard import CHECKPOINT, refuse_output
from ..checkpoint.output.layout import Layout, OutputTensor, make_layout
from ..checkpoint.output.workspace import beside
from ..checkpoint.source import reading
from ..checkpoint.special_tokens import TokenIds
from ..checkpoint.tokens import other_tokens
from ..device import torch_device
from ..errors import MethodError, OutputError, Way
from ..methods import Method
from ..methods.two_sided import title_under
from ..plan.companions import Companions, account
from ..plan.configuration import CONFIG, Configuration, Reshape, configuration
from ..plan.plan import Plan, idle_models, make_plan, swapped
from ..progress import Progress, silent
from ..record.card import model_card
from ..record.input_digests import InputDigests
from ..record.manifest import DIGESTS, FileRecord, Manifest, installed_version, make_manifest
from .allocator import return_large_blocks
from .backend import Backend
from .bill import Bill, bill_of
from .loop import run
from .settings import Settings
from .staged import run_as_measured
from .task import Context


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
        configuration: What `config.json` and `generation_config.json` will say.
        finish: Changes what was copied beside the weights, in the folder that it is given; or None.
        called: What the model card calls the output. Default: its own name.
    """

    plan: Plan
    layout: Layout
    options: Mapping[str, Any]
    settings: Settings
    output: Path
    configuration: Configuration
    companions: Companions
    finish: Callable[[Path], None] | None = None
    called: str | None = None

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

    def needs(self) -> Needs:
        """Return what the run takes, from headers alone."""
        backend = self.backend()
        largest = max((step.bytes_read for step in self.plan.steps), default=0)
        return Needs(
            bytes_read=self.plan.bytes_read,
            bytes_written=sum(shard.nbytes for shard in self.layout.shards),
            num_files=len(self.layout.shards),
            memory=self.bill(backend).total,
            mapped=min(backend.threads * largest, self.plan.bytes_read),
        )

    def bill(self, backend: Backend) -> Bill:
        """Return what the run takes of memory.

        Raises:
            MemoryBudgetError: A tensor that is worked on whole takes more than the budget.
        """
        settings = self.settings
        return bill_of(
            self.plan.steps,
            self.method,
            settings.protection,
            backend,
            settings.memory,
            unlimited=lambda: replace(settings, memory=None).backend(self.plan),
            loads_torch=self.method.loads_torch
            or settings.device not in ("auto", "cpu")
            or (settings.protection is not None and settings.protection.needs_gram),
        )

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
    refuse_output(output, [base, *tuned], CHECKPOINT, overwrite=overwrite)
    opened = open_checkpoint(base)
    models = [opened, *(open_checkpoint(path, opened) for path in tuned)]
    plan = make_plan(models, lambda _: method, settings.request())
    plan = replace(plan, notes=(*idle_models(models), *swapped(models), *plan.notes, *other_tokens(models)))
    return prepare_plan(plan, output=output, settings=settings, options=method.options())


def _refuse_unprotected(method: Method, settings: Settings) -> None:
    if method.protects and settings.protection is None:
        raise MethodError(
            f"{method.title} is nothing without a base that is protected",
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
        raise MethodError("a base is protected from tuned models, and there are none")
    if settings.device not in ("auto", "cpu"):
        torch_device(settings.device)
    companions = account(plan)
    written = configuration(plan, dtype=settings.dtype, reshape=reshape, tokens=tokens)
    plan = replace(plan, notes=(*plan.notes, *written.notes, *companions.notes))
    layout = make_layout(output_tensors(plan), plan.base, settings.max_shard_bytes, plan.config_from.metadata)
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
        finish=finish,
    )
    prepared.needs()  # refuses what does not fit the memory
    return prepared


def output_tensors(plan: Plan) -> list[OutputTensor]:
    """Return what a run of the plan writes."""
    return [
        OutputTensor(
            name=step.name,
            dtype=step.dtype,
            shape=step.shape,
            origin=step.base.file.name if step.base and step.base.file else None,
        )
        for step in plan.steps
    ]


def _refuse_full_disk(output: Path, needed: int) -> None:
    partial = beside(output)
    held = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file()) if partial.exists() else 0
    free = free_bytes(output)
    if needed > free + held:
        raise OutputError(f"the output takes {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free")


def execute(
    prepared: Prepared,
    *,
    curvature: Mapping[str, Curvatures] | Iterator[Mapping[str, Curvatures]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    refuse_changed: Callable[[], None] = lambda: None,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    backend: Backend | None = None,
) -> Manifest:
    """Run a prepared fuse and return its manifest.

    Args:
        curvature: By output name, what was measured of the tensor in each model, the base first; a tensor without is
            fused with H = I. An iterator gives it block by block, as it is being measured.
        provenance: Where the curvature came from, for the manifest.
        refuse_changed: Raises where what the curvature was read from has changed meanwhile.

    Raises:
        SculptError: Nothing is left under the output's name.
    """
    plan, settings = prepared.plan, prepared.settings
    backend = backend or prepared.backend()
    bill = prepared.bill(backend)
    if bill.whole:  # what is seen whole comes and goes in large blocks
        return_large_blocks()
    sources = (plan.base, *plan.tuned)

    def check() -> None:
        for source in sources:
            source.refuse_changed()
        refuse_changed()

    sink = FolderSink(
        prepared.output,
        prepared.layout,
        fingerprint=_fingerprint(prepared, provenance),
        overwrite=overwrite,
        new_digest=DIGESTS[settings.digest],
        buffers=backend.threads + 4,
    )
    inputs = InputDigests(sources, plan.steps, settings.digest)
    with reading(sources), closing(inputs), sink:
        context = Context(
            plan=plan,
            curvature=curvature if isinstance(curvature, Mapping) else None,
            seed=settings.seed,
            backend=backend,
            sink=sink,
            inputs=inputs,
            keep_nonfinite=settings.policies.on_nonfinite == "keep",
            protector=settings.protector(plan),
            whole_bytes=bill.budget,
        )
        if curvature is None or isinstance(curvature, Mapping):
            records = run(plan.steps, context, progress=progress)
        else:
            records = run_as_measured(context, curvature, progress=progress)
        check()
        outputs = [
            FileRecord(
                name=shard.file_name,
                nbytes=shard.nbytes,
                digest=f"{settings.digest}:{sink.digest(shard.file_name)}",
            )
            for shard in prepared.layout.shards
        ]
        manifest = make_manifest(
            plan,
            prepared.options,
            settings=settings.recorded(),
            command=command,
            curvature=provenance,
            digests=inputs.results(backend.threads),
            outputs=outputs,
            records={name: replace(records[name], digest=digest) for name, digest in sink.tensor_digests().items()},
        )
        check()
        whole: list[Manifest] = []
        sink.commit(lambda folder: whole.append(_add_files(folder, prepared, manifest)))
    return whole[0]


def resume_facts(prepared: Prepared, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that decides the output's bytes: a resumed run must have the same."""
    plan = prepared.plan
    return {
        "sculpt": installed_version("checkpoint-sculpt"),
        "inputs": [checkpoint.resume_key() for checkpoint in (plan.base, *plan.tuned)],
        "method": prepared.method.name,
        "options": prepared.method.options(),
        "own": {step.name: [step.method.name, step.method.options()] for step in plan.steps if step.method},
        "settings": prepared.settings.recorded(),
        "tiles": prepared.settings.tile_elements,
        "curvature": provenance,
        "configuration": prepared.configuration.files,
        "shards": {shard.file_name: hashlib.sha256(shard.header).hexdigest() for shard in prepared.layout.shards},
    }


def _fingerprint(prepared: Prepared, provenance: Mapping[str, Any] | None) -> str:
    facts = resume_facts(prepared, provenance)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _add_files(folder: Path, prepared: Prepared, manifest: Manifest) -> Manifest:
    """Copy configuration, tokenizer and code from the chosen side, write the card, then the manifest of all of it."""
    plan = prepared.plan
    prepared.companions.copy(folder)
    for name in prepared.configuration.rewritten:
        text = json.dumps(prepared.configuration.files[name], indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if prepared.finish is not None:
        prepared.finish(folder)
    (folder / "README.md").write_text(
        model_card(plan, manifest, prepared.called or prepared.output.name), encoding="utf-8"
    )
    manifest = replace(manifest.of_folder(folder, prepared.settings.digest), files=prepared.companions.told(folder))
    manifest.write(folder)
    return manifest
