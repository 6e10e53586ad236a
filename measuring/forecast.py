"""What a fuse is expected to take, with what is measured on its way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..fusion.run.calibration import Calibration
from ..fusion.run.prepared import Needs, Prepared
from .measured import is_kept_before
from .models import to_measure


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a fuse is expected to take on a CPU, with what is measured on its way.

    Attributes:
        seconds: About.
        samples: A sentence about what each model is measured on.
    """

    needs: Needs
    seconds: float
    samples: tuple[str, ...] = ()


def expected(prepared: Prepared, calibration: Calibration) -> Expected:
    """Return what a fuse takes, by headers, a look at the samples and a trial of this machine; nothing is run.

    Raises:
        SculptError: Samples cannot be read, or would come to nothing.
    """
    from ..fusion.run.bill import PROCESS_BYTES
    from ..fusion.run.trial import seconds_to_fuse
    from ..hessian.forecast import COMPARED, compared, forecast, samples_of, seconds_to_read, whole_model

    needs, seconds, protection = prepared.needs(), seconds_to_fuse(prepared), prepared.settings.protection
    if not calibration.enabled or not (protection is not None or prepared.method.uses_curvature):
        return Expected(needs=needs, seconds=seconds)
    models = (prepared.plan.base, *prepared.plan.tuned)
    full = prepared.method.needs_gram or (protection is not None and protection.needs_gram)
    told, held, logits, libraries, whole = [], 0, 0, 0, 0
    for place, _, own in to_measure(prepared, calibration):
        if own.hessian is not None:
            continue
        model = models[place]
        if is_kept_before(model, place, own, prepared):
            told.append(f"{model.ref} is not run: its statistics are kept from an earlier run")
            continue
        samples = samples_of(own.data, own, model)
        found = forecast(model, samples, full=full, memory=own.memory)
        told.append(f"{model.ref} is run on {samples.name}: {samples.num_rows} rows, about {samples.num_tokens} tokens")
        seconds, held, libraries = seconds + found.seconds, held + found.held, found.libraries
        logits = max(logits, found.logits)
        whole = max(whole, whole_model(model) if samples.written else 0)
    if protection is not None and calibration.protect_check and prepared.settings.emit == "checkpoint":
        whole = max(whole, compared(models[0]) + held + logits)  # beside what was run and is not let go yet
        seconds += 2 * seconds_to_read(models[0], COMPARED)
    bill = prepared.bill(prepared.backend())
    tiles = bill.expected - bill.process - bill.whole
    height = max(held + logits + tiles, bill.whole + tiles, whole)
    memory = height + max(bill.process, PROCESS_BYTES + libraries)
    return Expected(needs=replace(needs, memory=memory), seconds=seconds, samples=tuple(told))
