"""Two checkpoints in, one fused checkpoint out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..arithmetic.curvature import Curvatures
from ..checkpoint.output.encoding import Encoding
from ..checkpoint.output.encoding_sink import EncodingSink
from ..checkpoint.output.folder_sink import WRITERS, FolderSink
from ..checkpoint.output.guard import SINGLE_FILE
from ..checkpoint.output.sink import Sink
from ..checkpoint.source import reading
from ..digests import DIGESTS, digest_of_facts
from ..errors import MethodError
from ..patch.sink import PatchSink
from ..progress import Progress, silent
from ..record.card import model_card
from ..record.files import FileRecord
from ..record.input_digests import InputDigests
from ..record.manifest import Manifest, make_manifest
from ..record.records import TensorRecord
from .allocator import return_large_blocks
from .backend import SPARE_BUFFERS, Backend
from .bill import Bill
from .loop import run
from .prepared import FEEDS_BACK, Prepared, resume_facts
from .rounding import InputFactors, uniforms
from .share import share_of
from .staged import run_as_measured
from .task import Context

logger = logging.getLogger(__name__)

NO_MODEL = {"why_not": "a single file was written, and no model that could run"}
NOT_COMPARED = {"why_not": "a patch was written, and no model that could run"}


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


def _fingerprint(prepared: Prepared, provenance: Mapping[str, Any] | None) -> str:
    return digest_of_facts(resume_facts(prepared, provenance))


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
