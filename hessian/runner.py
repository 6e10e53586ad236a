"""A whole calibration, from the checkpoint to the file: resumed where one was killed, shared among processes."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.checkpoint import Asked, Source
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.checkpoint.output.workspace import SUFFIX, Workspace, beside, is_interrupt, is_marked, is_of_the_machine
from ..fusion.disk_space import free_bytes
from ..fusion.errors import OutputError
from ..fusion.launch import Launch
from ..fusion.places.names import size_told
from ..fusion.progress import Progress
from .forward.journal import GRAMS, Journal
from .measure.statistics import ReturnError
from .options import CalibrationOptions
from .parallel import all_summed, reasons_of_all
from .session import Session
from .store.diagonal import DiagonalHessian
from .store.file_format import STATISTICS
from .store.gram_store import LostError

logger = logging.getLogger(__name__)


def run(
    checkpoint: Asked | Source,
    options: CalibrationOptions,
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    progress: Progress,
) -> DiagonalHessian:
    """Return the statistics of a whole calibration, and write them."""
    processes = Processes()
    with ExitStack() as stack:
        workspace = None if output is None else stack.enter_context(_workspace(output, processes))
        stack.push(
            lambda _kind, error, _trace: processes.leave(error, kept=is_interrupt(error) or is_of_the_machine(error))
        )
        if output is not None and workspace is not None:
            if processes.is_first:
                processes.lead(workspace.folder)
            else:
                processes.follow(beside(output, _suffix(Launch(count=processes.count))))

        def attempt(*, resume: bool, in_store: bool = True) -> DiagonalHessian:
            return _run(
                checkpoint,
                options,
                workspace,
                processes,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
                in_store=in_store,
            )

        try:
            return attempt(resume=resume)
        except ReturnError as error:
            assert workspace is not None
            logger.warning(
                "the model runs `%s` more than once, so the run starts again with full matrices in memory", error
            )
            workspace.empty()
            return attempt(resume=False, in_store=False)
        except LostError as error:
            assert workspace is not None
            logger.warning("the interrupted run cannot be resumed, so it starts again: %s", error)
            workspace.empty()
            return attempt(resume=resume)


def _workspace(output: Path, processes: Processes) -> Workspace:
    """Return the folder of an unfinished run: each process has its own."""
    workspace = Workspace(output, made_by="calibrate", suffix=_suffix(processes.launch))
    workspace.resumable = True
    return workspace


def _remove_others(workspace: Workspace, count: int) -> None:
    """Remove what killed runs of another number of processes left: nobody goes on from it now."""
    form = re.compile(rf"{re.escape(workspace.output.name)}((?:-\d+-of-(\d+))?{re.escape(SUFFIX)})")
    for folder in sorted(workspace.output.parent.iterdir()):
        found = form.fullmatch(folder.name)
        if found is not None and int(found[2] or 1) != count and is_marked(folder):
            with suppress(OutputError):  # another run is at it
                Workspace(workspace.output, made_by=None, suffix=found[1]).close()


def _suffix(launch: Launch) -> str:
    return f"-{launch.rank}-of-{launch.count}{SUFFIX}" if launch.count > 1 else SUFFIX


def _run(
    checkpoint: Asked | Source,
    options: CalibrationOptions,
    workspace: Workspace | None,
    processes: Processes,
    *,
    overwrite: bool,
    resume: bool,
    progress: Progress,
    in_store: bool,
) -> DiagonalHessian:
    if workspace is not None and not resume:  # what a killed run left must not be taken for this one's
        workspace.empty()
    with Session(checkpoint, options, progress=progress, processes=processes) as session:
        provenance = session.provenance()
        if workspace is not None:
            _refuse_full_disk(session, workspace)
            if resume:
                session.journal = Journal(workspace, {**asdict(provenance), **session.resume_key()})
            if in_store and options.full:
                session.gram_file = workspace.folder / GRAMS
        curvatures: dict[str, Curvature] = {}
        for block in session.blocks(may_return=True):
            curvatures |= block
        missing = session.collector.why_missing(curvatures)
        total: dict[str, Curvature] = {}
        for block in all_summed(curvatures, processes):
            if workspace is None or not processes.are_several or session.grams is None:
                total |= block
            elif processes.is_first:
                total |= session.grams.keep(block)
        why_missing = reasons_of_all(missing, total, processes)
        session.checkpoint.refuse_changed()
        hessian = DiagonalHessian(curvatures=total, provenance=provenance, why_missing=why_missing)
        if workspace is not None and processes.is_first:
            hessian.write(workspace.payload)
            if session.grams is not None:  # the store goes
                hessian = DiagonalHessian.load(workspace.payload)
            workspace.publish(STATISTICS.may_replace if overwrite else None)
            _remove_others(workspace, processes.count)
            processes.say("done")
        elif workspace is not None:
            processes.wait_for_first("done")
            hessian = DiagonalHessian.load(workspace.output)
    return hessian


def _refuse_full_disk(session: Session, workspace: Workspace) -> None:
    """Raise OutputError where the disk lacks the room for the statistics, known before any sample is run."""
    needed, free = session.bytes_written(), free_bytes(workspace.folder)
    held = sum(file.stat().st_size for file in workspace.folder.iterdir())
    if needed > free + held:
        raise OutputError(
            f"the statistics take {size_told(needed)} on the way, and the disk of `{workspace.output}` has "
            f"{size_told(free)} free"
        )
