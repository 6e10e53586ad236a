"""A fuse that is planned: what it takes, where it goes, and all that could be refused before the long part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.output.encoding import Encoding
from ..checkpoint.output.guard import SINGLE_FILE, refuse_output
from ..checkpoint.output.layout import Layout, OutputTensor, make_layout
from ..checkpoint.output.processes import Processes
from ..checkpoint.output.workspace import beside
from ..checkpoint.special_tokens import TokenIds
from ..checkpoint.tokens import other_tokens
from ..device import float64_device, torch_device
from ..disk_space import free_bytes, taken_bytes
from ..errors import MethodError, OutputError, Way
from ..file_kinds import CONFIG
from ..methods import Method
from ..methods.two_sided import title_under
from ..patch.sink import FEW_FRAMES, FRAME_BYTES
from ..places.names import size_told
from ..plan.companions import Companions, account
from ..plan.configuration import Configuration, Reshape, configuration
from ..plan.encoding import encodings
from ..plan.plan import Plan, idle_models, make_plan, swapped
from ..record.manifest import ASKED, installed_version
from .backend import Backend
from .bill import Bill, bill_of, encoding_bytes
from .settings import Settings

FEEDS_BACK = ("auto", "error-feedback")  # roundings that have later codes make up for an error


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


def _refuse_unprotected(method: Method, settings: Settings) -> None:
    if method.protects and settings.protection is None:
        raise MethodError(
            f"{method.title} needs a protected base",
            ways=[Way(option="protect", value="default", effect="protects it on the general set that ships")],
        )


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
        # What was asked for only counts by what came of it: a run may go on with smaller batches.
        "curvature": provenance and {key: value for key, value in provenance.items() if key != ASKED},
        "configuration": prepared.configuration.files,
        "shards": {shard.file_name: hashlib.sha256(shard.header).hexdigest() for shard in prepared.layout.shards},
    }
