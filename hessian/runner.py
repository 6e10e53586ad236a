"""A whole calibration, from the checkpoint to the file: resumed where one was killed, shared among processes."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.checkpoint.output.claim import Claim
from ..fusion.progress import Progress
from .forward.journal import GRAMS, Journal
from .measure.statistics import ReturnError
from .options import CalibrationOptions
from .parallel import Processes, add_up, join, own_device, wait
from .session import Session
from .store.diagonal import DiagonalHessian
from .store.gram_store import LostError

logger = logging.getLogger(__name__)


def run(
    checkpoint: Path,
    options: CalibrationOptions,
    *,
    output: Path | None,
    resume: bool,
    progress: Progress,
) -> DiagonalHessian:
    """Return the statistics of a whole calibration, and write them."""
    processes = join(options.device)
    options = replace(options, device=own_device(options.device))
    with ExitStack() as stack:
        claim = None if output is None else stack.enter_context(_claim(output, processes))
        try:
            return _run(checkpoint, options, output, claim, processes, resume=resume, progress=progress)
        except ReturnError as error:
            assert claim is not None
            logger.warning("the model comes back to `%s`, so the run starts again with full matrices in memory", error)
            claim.empty()
            return _run(checkpoint, options, output, claim, processes, resume=False, progress=progress, in_store=False)
        except LostError as error:
            assert claim is not None
            logger.warning("the interrupted run cannot be resumed, so it starts again: %s", error)
            claim.empty()
            return _run(checkpoint, options, output, claim, processes, resume=resume, progress=progress)


def _claim(output: Path, processes: Processes) -> Claim:
    """Return the folder of an unfinished run: each process has its own."""
    share = f"-{processes.rank}-of-{processes.count}" if processes.count > 1 else ""
    return Claim(output.with_name(f"{output.name}{share}.partial"))


def _run(
    checkpoint: Path,
    options: CalibrationOptions,
    output: Path | None,
    claim: Claim | None,
    processes: Processes,
    *,
    resume: bool,
    progress: Progress,
    in_store: bool = True,
) -> DiagonalHessian:
    if claim is not None and not resume:  # what a killed run left must not be taken for this one's
        claim.empty()
    with Session(checkpoint, options, progress=progress, share=(processes.rank, processes.count)) as session:
        provenance = session.provenance()
        if claim is not None and resume:
            session.journal = Journal(claim, {**asdict(provenance), "options": repr(options)})
        if claim is not None and in_store and options.full:
            session.gram_file = claim.folder / GRAMS
        curvatures: dict[str, Curvature] = {}
        for block in session.blocks(may_return=True):
            curvatures |= block
        missing = session.collector.why_missing(curvatures)
        total, why_missing = add_up(curvatures, missing, processes, session.grams)
        hessian = DiagonalHessian(curvatures=total, provenance=provenance, why_missing=why_missing)
        if output is not None and processes.is_first:
            hessian.save(output)
            hessian = DiagonalHessian.load(output) if session.grams is not None else hessian  # the store goes
        wait(processes)
        if claim is not None:
            claim.empty()
    return hessian
