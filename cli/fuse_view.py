"""How a fuse's plan and result look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import fsum, sqrt
from typing import TYPE_CHECKING, Any

from ..fusion.arithmetic.two_sided import LOW_RANK
from ..fusion.methods.named import options_told
from ..fusion.names import block_of, kind_of, natural_key
from ..fusion.run.protector import INTERPOLATION, TARGET_ALONE
from .console import count, gigabytes, out, say, table, warn

if TYPE_CHECKING:
    from ..fusion.plan.plan import Plan, Step
    from ..fusion.record.manifest import Manifest
    from ..fusion.record.records import TensorRecord
    from ..fusion.run.calibration import Calibration
    from ..fusion.run.prepared import Prepared
    from ..measuring import Statistics

MAX_ROWS = 60
MAX_NAMED = 8
MOST_MOVED = 8  # kinds of data, of those that are told of after a fuse
GROWN = 1.5  # times the fine-tune's own deltas, from which on those that are left are warned of
FAR = 0.1  # nats a token, from which on a kind may be warned of


def _groups(steps: Iterable[Step]) -> dict[tuple[str, str, str], list[Step]]:
    """Group steps by what happens, why, and the kind of tensor: one row for all layers' `mlp.up_proj.weight`."""
    found: dict[tuple[str, str, str], list[Step]] = {}
    for step in steps:
        action = step.action if step.action == "fuse" else f"copy {step.source}"
        why = step.why if step.differs is None else f"{step.why}; {'different' if step.differs else 'equal'}"
        found.setdefault((action, kind_of(step.name), why), []).append(step)
    return found


def show_plan(prepared: Prepared, calibration: Calibration) -> None:
    """Print what would happen to each group of tensors, and what it would take."""
    from ..fusion.disk_space import free_bytes
    from ..measuring import expected
    from .progress import duration

    plan = prepared.plan
    rows = [
        [kind, action, str(len(steps)), count(sum(s.num_elements for s in steps)), why]
        for (action, kind, why), steps in _groups(plan.steps).items()
    ]
    table(f"{prepared.title}: plan", ["tensors", "action", "number", "parameters", "why"], rows, text=4)
    out(f"copied: {_copied(plan.steps)}")
    show_notes(plan)
    if options := options_told(prepared.options):
        out(f"options: {'; '.join(map(' '.join, options))}")
    if prepared.settings.protection is not None:
        protection = options_told(asdict(prepared.settings.protection))
        out(f"protection of the base: {'; '.join(map(' '.join, protection))}")
    for sentence in (found := expected(prepared, calibration)).samples:
        out(sentence)
    need = found.needs
    out(f"read {gigabytes(need.bytes_read)}, write {gigabytes(need.bytes_written)} in {need.num_files} file(s)")
    mapped = f"{gigabytes(need.mapped)} of mapped files{_elsewhere(prepared)}"
    out(f"peak memory about {gigabytes(need.memory)}, beside {mapped}")
    out(f"time about {duration(found.seconds)}, as fast as this machine is now")
    out(f"output {prepared.output}, {gigabytes(free_bytes(prepared.output))} free there")


def show_notes(plan: Plan) -> None:
    """Print what a plan found on the way."""
    for rule in plan.renamings:
        say(f"names: `{rule.base_prefix}*` in the base is `{rule.tuned_prefix}*` in the tuned model ({rule.count})")
    for note in plan.notes:
        say(f"note: {note}")


def _elsewhere(prepared: Prepared) -> str:
    device = prepared.settings.device
    return "" if device in ("auto", "cpu") else f"; models that are run lie on `{device}`"


def plan_json(prepared: Prepared, calibration: Calibration) -> dict[str, Any]:
    """Return the plan for programs."""
    from ..fusion.disk_space import free_bytes
    from ..measuring import expected

    found = expected(prepared, calibration)
    return {
        "output": str(prepared.output),
        "method": prepared.method.name,
        "options": dict(prepared.options),
        "needs": asdict(found.needs),
        "seconds": round(found.seconds, 1),
        "samples": list(found.samples),
        "free_disk": free_bytes(prepared.output),
        "renamings": [asdict(rule) for rule in prepared.plan.renamings],
        "notes": [*prepared.plan.warnings, *prepared.plan.notes],
        "tensors": [
            {
                "name": step.name,
                "action": step.action,
                "source": step.source if step.action == "copy" else None,
                "why": step.why,
                "differs": step.differs,
                "dtype": step.dtype,
                "shape": list(step.shape),
                "num_fused": step.num_fused,
            }
            for step in prepared.plan.steps
        ],
    }


def show_uncovered(manifest: Manifest, found: Statistics) -> None:
    """Say which fused tensors calibration has no statistics for: they were fused with H = I, or interpolated."""
    if found.provenance is None:
        return
    reasons = found.why_missing()
    names = [record.name for record in manifest.fused if not record.measured and record.protected != TARGET_ALONE]
    instead = "an interpolation at 1/(1 + λ)" if manifest.settings.get("protection") else "H = I"
    by_reason: dict[str, list[str]] = {}
    for name in names:
        by_reason.setdefault(reasons.get(name, "not measured"), []).append(name)
    for reason, group in by_reason.items():
        others = f" and {len(group) - 1} others" if len(group) > 1 else ""
        say(f"note: {instead} for `{group[0]}`{others}: {reason}")
    # Biases have no statistics of their own.
    between = [
        record
        for record in manifest.fused
        if record.measured and len(record.shape) > 1 and INTERPOLATION in (record.protected or "")
    ]
    if between:
        named = [f"`{record.name}`{_of_experts(record.protected or '')}" for record in between]
        shown = ", ".join(named[:MAX_NAMED]) + (f" and {len(named) - MAX_NAMED} more" if named[MAX_NAMED:] else "")
        say(f"note: no sample of either side reached {shown}: {instead} there. More samples, of more kinds, may do so")
    alone = [record.name for record in manifest.fused if record.protected == TARGET_ALONE]
    if alone:
        others = f" or {len(alone) - 1} others" if len(alone) > 1 else ""
        say(
            f"note: no general sample reached `{alone[0]}`{others}, so their deltas are unchanged: samples of a kind "
            "that reaches them, such as images, would protect the base there"
        )


def show_grown(manifest: Manifest) -> None:
    """Warn where a protection left deltas that are larger than the fine-tune's own: its matrices tell too little."""
    mixed = [record for record in manifest.fused if record.own_delta_l1 is not None]
    left, own = fsum(record.delta_l1 or 0 for record in mixed), fsum(record.own_delta_l1 or 0 for record in mixed)
    if len(manifest.inputs) == 2 and left > GROWN * own:  # several fine-tunes add up
        warn(
            f"the deltas after the protection are {left / own:.1f} times as large as the fine-tune's: the samples "
            "do not separate its directions enough. Use more samples, or a larger `--protect-ridge`"
        )


def _of_experts(protected: str) -> str:
    """Return which experts of a stack an interpolation is of, for a sentence."""
    return f" (experts {which})" if (which := protected.partition(f"{INTERPOLATION} of ")[2]) else ""


def _block_row(block: str, records: list[TensorRecord]) -> list[str]:
    elements = sum(r.num_fused for r in records)
    return [
        block,
        str(len(records)),
        count(elements),
        f"{1 - sum(r.kept or 0 for r in records) / elements:.2%}",
        f"{sum(r.clipped or 0 for r in records) / elements:.2%}",
        f"{sum(r.fine_tuned_l1 or 0 for r in records):.4g}",
        f"{sqrt(sum((r.distance_l2 or 0) ** 2 for r in records)):.4g}",
    ]


def show_result(prepared: Prepared, manifest: Manifest) -> None:
    """Print what was done to each block, and a paragraph that sums up."""
    blocks: dict[str, list[TensorRecord]] = {}
    for record in manifest.fused:
        blocks.setdefault(block_of(record.name), []).append(record)
    ordered = sorted(blocks, key=natural_key)
    rows = [_block_row(block, blocks[block]) for block in ordered[:MAX_ROWS]]
    more = f"and {len(ordered) - MAX_ROWS} more, in the manifest" if len(ordered) > MAX_ROWS else None
    columns = ["block", "tensors", "parameters", "sparsity", "clipped", "Σ|δ|", "‖fused − base‖₂"]
    if rows:
        table("what was done to each block", columns, rows, note=more, aside=True)
    if manifest.moved is not None:
        show_moved(manifest.moved, aside=True)
    if any(LOW_RANK in (record.protected or "") for record in manifest.fused):
        say(
            "note: the deltas are of low rank, like those of an adapter: samples of the task (`--data`) give "
            "better results"
        )
    elements = sum(record.num_fused for record in manifest.fused)
    target = manifest.options.get("sparsity")
    asked = f" (asked for {target:.2%})" if isinstance(target, float) else ""
    told = f"{manifest.told_sparsity(asked)}. " if elements else ""
    say(
        f"{prepared.title} fused {len(manifest.fused)} tensors, {count(elements)} parameters, and copied "
        f"{_copied(prepared.plan.steps)}. {told}{_better_allocation(manifest)}{_budget(manifest)}"
        f"{_conversions(prepared)}{moved_sentence(manifest.moved)}"
        f"The manifest holds each tensor's figures and the digests of all inputs: {_how_to_verify(prepared)}."
    )
    say(f"wrote {prepared.output}")


def show_moved(moved: Mapping[str, Any], *, held_out: bool = True, aside: bool = False) -> None:
    """Print how far each kind of data moved, and warn of the one that moved most, if that is far.

    Args:
        held_out: Whether they are kinds of the general set, but for the rows that were measured.
        aside: Whether the table is beside what was asked for: it goes to stderr, and has what moved most alone.
    """
    if "why_not" in moved:
        say(f"note: how far the model moved from its base was not measured: {moved['why_not']}")
        return
    kinds = moved["kinds"]
    most = MOST_MOVED if aside else MAX_ROWS
    rows = [[k["kind"], f"{k['divergence']:.3f}", f"{k['same']:.1%}", str(k["num_tokens"])] for k in kinds[:most]]
    where_all = ", which moved less: all are in the manifest" if aside else ""
    more = f"and {len(kinds) - most} more{where_all}" if len(kinds) > most else None
    columns = ["data", "nats a token", "same next token", "tokens"]
    where = ", on general data that were not measured" if held_out else ""
    table(f"how far it moved from the base{where}", columns, rows, note=more, aside=aside)
    if moved["without"]:
        why = "all of its rows were measured" if held_out else "nothing of it is to be predicted here"
        say(f"note: of {', '.join(moved['without'])} the table says nothing: {why}")
    first = kinds[0]
    mean = sum(k["divergence"] for k in kinds) / len(kinds)
    if first["divergence"] > max(FAR, 2 * mean):
        hold = "protect more such data, or give it more weight"
        if held_out:
            hold = f"give it more weight: `--protect default --protect default/{first['kind']}:3`"
        warn(
            f"`{first['kind']}` moved most, by {first['divergence']:.2f} nats a token where the mean is "
            f"{mean:.2f}; {first['same']:.0%} of its next tokens are those of the base. To hold it, {hold}"
        )


def moved_sentence(moved: Mapping[str, Any] | None) -> str:
    """Return how far a model moved from its base, in a sentence; nothing where that was not measured."""
    if not moved or "why_not" in moved:
        return ""
    kinds = moved["kinds"]
    mean = sum(k["divergence"] for k in kinds) / len(kinds)
    return (
        f"{_gain_sentence(moved.get('gain'))}On general data that were not measured its next tokens are "
        f"{mean:.3f} nats from the base's, `{kinds[0]['kind']}` the farthest with {kinds[0]['divergence']:.3f}. "
    )


def _gain_sentence(gain: Mapping[str, Any] | None) -> str:
    if gain is None or gain["kept"] is None:
        return ""
    where = f"{gain['rows']} rows of its data that were not measured"
    return f"Of what the fine-tune gained on {where} {gain['kept']:.0%} is kept. "


def _how_to_verify(prepared: Prepared) -> str:
    if prepared.settings.emit == "patch":
        return f"`sculpt patch verify {prepared.output} --base {prepared.plan.base.ref}`"
    return f"`sculpt verify {prepared.output}`"


def _conversions(prepared: Prepared) -> str:
    from ..fusion.plan.plan import conversions

    plan = prepared.plan
    steps = [step for step in plan.steps if step.name not in prepared.encodings]  # a note tells of the others
    return "".join(f"{told[0].upper()}{told[1:]}. " for told in conversions(steps, (plan.base, *plan.tuned)))


def _copied(steps: Iterable[Step]) -> str:
    """Return how many tensors are copied, and in how many of them the models differ, by where they are from."""
    copied = [step for step in steps if step.action == "copy"]
    parts = []
    for source, text in (
        ("tuned", "from a tuned model and different from the base"),
        ("base", "from the base, and different in a tuned model"),
    ):
        found = [step for step in copied if step.differs and step.source == source]
        if found:
            parts.append(f"{len(found)} {text}, {count(sum(step.num_elements for step in found))} parameters")
    return f"{len(copied)}" + (f" ({'; '.join(parts)})" if parts else "")


def _better_allocation(manifest: Manifest) -> str:
    closed = sum(r.figures.get("expected_loss_closed_form", 0.0) for r in manifest.fused)
    exact = sum(r.figures.get("expected_loss_exact", 0.0) for r in manifest.fused)
    if manifest.options.get("scope") != "tensor" or manifest.options.get("allocation") != "closed-form":
        return ""
    if exact >= 0.99 * closed:
        return ""
    return "`--allocation exact` would meet the sparsity that was asked for. "


def _budget(manifest: Manifest) -> str:
    held = [r for r in manifest.fused if "gamma_bound" in r.figures]
    if not held:
        return ""
    cut = [r for r in held if r.figures["gamma_bound"] < (r.options or manifest.options).get("gamma", float("inf"))]
    text = f"The budget cut γ in {len(cut)} of {len(held)} tensors"
    if manifest.options.get("scope") != "tensor":  # then a tensor's figures are those of all that share its budget
        return f"{text}. "
    expected, realised = sum(r.figures["expected_l1"] for r in held), sum(r.distance_l1 or 0.0 for r in held)
    return f"{text}; L1 distance to the base {realised:.4g}, expected {expected:.4g}. "
