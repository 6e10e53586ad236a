"""The arms: commands of `sculpt`, each with the strengths that it may take.

`{s}` is the strength, `{rest}` one minus it. Files are made when an arm names them, and kept: `{target-128}`, as many
training examples of the target task, `{asked-128}` with the answers apart; `{default-128}` and so on, general samples;
`{hessian-target-128}`, diagonal statistics of the fine-tune on those examples; `{full-target-128}`,
`{full-default-128}`, full moments of the fine-tune and of the base; `{crossed-target-128}` and so on, of the other
model; `{answers-asked-128}`, of the answers' tokens alone; `{fisher-…}`, `{magnitudes-…}` and `{gradients-…}`, what
`rivals/measure.py` measures. `{--flag full-target-128}` is the flag with each fine-tune's file, where several are
merged. After `;` the result so far is the tuned model. `sequential` is the script beside this file; names in `rivals/`
are methods that are no commands of sculpt.

Left out, because they are other arms bit for bit: AdaDARE-γ at sparsity 0 is interpolation, top-k by magnitude is TIES.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # of a tenth of the deltas that was not rescaled
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
HIGHER_LAMBDAS = (*LAMBDAS, 30.0, 100.0)  # where pictures protect: there the best lies higher
SMALL_LAMBDAS = (0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0)  # where the delta stands in for samples
WEIGHTED_LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # where A is of what is learned
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SPARSITIES = (0.5, 0.9, 0.99)
SAMPLES = (8, 32, 128, 512)
SOME = 128  # samples of either side, unless their number is what is studied
FEW = 64  # where each takes a backward


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to fuse.

    Attributes:
        command: Arguments of `sculpt` without models and output.
        grid: Strengths, of which validation chooses one; empty where there is nothing to choose.
        start: The strength that is tried first.
        curve: Score every strength on test too, of the first full fine-tune.
    """

    name: str
    command: str
    grid: tuple[float, ...] = ()
    start: float = 0.0
    curve: bool = False


def two_sided(
    curvature: str = "full", *, target: str = f"full-target-{SOME}", protect: str = f"default-{SOME}", more: str = ""
) -> str:
    """Return the command of a two-sided fuse from full statistics of both sides; its strength is λ."""
    return (
        f"fuse {{--hessian {target}}} --protect {{full-{protect}}} --protect-weight {{s}} "
        f"--curvature {curvature} --gamma 1 {more or '--sparsity 0'}"
    )


def _classical() -> list[Arm]:
    hessian = f"--hessian {{hessian-target-{SOME}}}"
    arms = [
        Arm(name="fine-tune", command="task-arithmetic --scale 1"),
        Arm(name="interpolation", command="task-arithmetic --scale {s}", grid=GAMMAS, start=0.6, curve=True),
        Arm(name="dare 0.9", command="dare --sparsity 0.9 --scale {s}", grid=GAMMAS, start=0.6),
    ]
    for allocation in ("closed-form", "exact"):
        for sparsity in SPARSITIES:
            arms.append(
                Arm(
                    name=f"adadare {allocation} {sparsity}",
                    command=f"fuse {hessian} --allocation {allocation} --sparsity {sparsity} --gamma {{s}}",
                    grid=GAMMAS,
                    start=0.6,
                )
            )
    arms += [
        Arm(name="ties 0.1", command="ties --density 0.1 --scale {s}", grid=SCALES, start=1.4),
        Arm(name="saliency 0.1", command=f"saliency {hessian} --density 0.1 --scale {{s}}", grid=SCALES, start=1.0),
        Arm(
            name="tailor",
            command=f"tailor --hessian {{full-target-{SOME}}} --sparsity {{s}}",
            grid=(0.5, 0.7, 0.9),
            start=0.9,
        ),
    ]
    return arms


def _two_sided(protect: str, name: str, grid: tuple[float, ...] = LAMBDAS) -> list[Arm]:
    """Return the forms that are compared at their best λ."""
    protect = f"{protect}-{SOME}"
    plain, exact = two_sided(protect=protect), two_sided(protect=protect, more="--sparsity 0.9 --allocation exact")
    return [
        Arm(name=name, command=plain, grid=grid, start=1.0, curve=True),
        Arm(name=f"{name} exact 0.9", command=exact, grid=grid, start=1.0),
        Arm(
            name=f"{name}, no samples",
            command=f"fuse --protect {{full-{protect}}} --protect-weight {{s}}",
            grid=SMALL_LAMBDAS,
            start=0.1,
        ),
        Arm(name=f"{name}, no samples, λ by itself", command=f"fuse --protect {{full-{protect}}}"),
    ]


def _variations() -> list[Arm]:
    """Return variations of `two-sided full` at λ = 1, for models of text."""
    variations = {f"at 1, {form}": two_sided(form) for form in ("block:512", "block:64", "diagonal")}
    variations |= {f"at 1, {text}": two_sided(protect=f"{text}-{SOME}") for text in ("fiction", "software")}
    for p in SPARSITIES:
        for allocation in ("closed-form", "exact"):
            variations[f"at 1, {allocation} {p}"] = two_sided(more=f"--sparsity {p} --allocation {allocation}")
        both = f"--sparsity {p} --allocation exact --protect-scores both"
        variations[f"at 1, drop by both {p}"] = two_sided(more=both)
    for count in SAMPLES:
        if count != SOME:
            variations[f"at 1, target-{count}"] = two_sided(target=f"full-target-{count}")
            variations[f"at 1, default-{count}"] = two_sided(protect=f"default-{count}")
    crossed = two_sided(target=f"crossed-target-{SOME}")
    variations |= {
        "at 1, crossed": crossed.replace("{full-", "{crossed-") + " --hessian-of-other-model",
        "at 1, sequential": f"sequential --target {{target-{SOME}}} --protect {{default-{SOME}}} --weight {{s}}",
        "at 1, low-rank 16": f"{two_sided()} ; lora-extract --rank 16 --exclude *embed_tokens* ; lora-merge",
    }
    return [Arm(name=f"two-sided {k}", command=command, grid=(1.0,)) for k, command in variations.items()]


def _weighted() -> list[Arm]:
    """Return `two-sided full` with the target's inputs weighted by what is learned at them."""
    kinds = {"by answers": f"answers-asked-{SOME}", "by gradients": f"gradients-asked-{SOME}"}
    return [
        Arm(name=f"two-sided {name}", command=two_sided(target=target), grid=WEIGHTED_LAMBDAS, start=0.3)
        for name, target in kinds.items()
    ]


def _rivals() -> list[Arm]:
    """Return other repairs of one fine-tune."""
    general = f"--general {{full-default-{SOME}}}"
    fishers = f"--target {{fisher-asked-{FEW}}} --general {{fisher-default-{FEW}}}"
    soft = f"fuse --protect {{full-default-{SOME}}} --target-curvature identity --protect-weight {{s}}"
    found = {
        "lines": ("lines --alpha {s} --beta {rest}", SHARES, 0.3),
        "dg-hard": ("dg-hard --set threshold={s}", (0.2, 0.35, 0.5, 0.7, 1.0, 1.4), 0.7),
        "dg-hard, scaled": ("dg-hard --set scale={s}", GAMMAS, 0.7),
        "cgm soft": (f"cgm {fishers} --set form=soft alpha={{s}}", ALPHAS, 1.0),
        "cgm hard": (f"cgm {fishers} --set form=hard reverted={{s}}", SHARES[1:], 0.5),
        "aim": (f"aim --general {{magnitudes-default-{SOME}}} --set omega={{s}}", SHARES[:6], 0.4),
        "null space, hard": (f"null-space {general} --set strength={{s}}", (0.5, 0.7, 0.8, 0.9, 0.95, 0.99), 0.9),
        "null space, soft": (soft, SMALL_LAMBDAS, 0.03),
        "iso-c": ("iso-c --scale {s}", GAMMAS, 0.7),
        "ace": ("ace --set scale={s}", GAMMAS, 0.7),
    }
    return [Arm(name=name, command=command, grid=grid, start=start) for name, (command, grid, start) in found.items()]


def _merged() -> list[Arm]:
    """Return what makes one model of the fine-tunes of several tasks."""
    each = f"{{--hessian full-target-{SOME}}}"
    scales = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2)
    found = {
        "average": ("task-arithmetic --weights 0.5", (), 0.0),
        "task arithmetic": ("task-arithmetic --scale {s}", scales, 0.5),
        "ties 0.1": ("ties --density 0.1 --scale {s}", SCALES, 1.4),
        "dare-ties 0.9": ("dare-ties --sparsity 0.9 --scale {s}", SCALES, 0.7),
        "model stock": ("model-stock", (), 0.0),
        "lines": ("lines --alpha {s} --beta {rest} --weights 0.7", SHARES, 0.3),
        "tsv-m": ("tsv-m --scale {s}", scales, 0.7),
        "iso-c": ("iso-c --scale {s}", scales, 0.7),
        "wudi": ("wudi --scale {s}", scales, 0.7),
        "wudi by Adam": ("wudi-adam --set scale={s}", scales, 0.7),
        "actmat": ("wudi --no-normalize --scale {s}", scales, 0.7),
        "ace": ("ace --set scale={s}", scales, 0.7),
        "fisher": (f"fisher {{--hessian hessian-target-{SOME}}}", (), 0.0),
        "fisher by gradients": (f"fisher-by-gradients --target {{--each fisher-asked-{FEW}}}", (), 0.0),
        "regmean": (f"regmean {each} --alpha {{s}}", (0.1, 0.5, 0.9, 0.99), 0.9),
        "regmean++": (f"sequential --target {{--each target-{SOME}}} --alpha {{s}}", (0.1, 0.5, 0.9, 0.99), 0.9),
        "two-sided full": (two_sided(), LAMBDAS, 0.3),
        "two-sided full, no samples": (
            f"fuse --protect {{full-default-{SOME}}} --protect-weight {{s}}",
            SMALL_LAMBDAS,
            0.1,
        ),
        "two-sided by gradients": (two_sided(target=f"gradients-asked-{SOME}"), WEIGHTED_LAMBDAS, 0.3),
    }
    return [Arm(name=name, command=command, grid=grid, start=start) for name, (command, grid, start) in found.items()]


COMMON = (*_classical(), *_two_sided("default", "two-sided full"))
TEXT = {arm.name: arm for arm in (*COMMON, *_variations(), *_weighted(), *_rivals())}
MERGED = {arm.name: arm for arm in _merged()}
IMAGES = {
    arm.name: arm
    for arm in (
        *COMMON,
        *_two_sided("names", "two-sided names", HIGHER_LAMBDAS),
        *_two_sided("mixed", "two-sided mixed", HIGHER_LAMBDAS),
    )
}
AS_TYPED = {
    arm.name: arm
    for arm in (
        Arm(name="as typed", command=f"fuse --data {{target-{SOME}}} --protect default"),
        Arm(name="as typed, no samples", command="fuse --protect default"),
    )
}  # with all defaults, the general set and the base's own answers among them
REFUSING = {
    name: Arm(name=name, command=f"fuse --protect default --protect {{refusals-48}}:{weight}")
    for name, weight in (("as typed, no samples, refusals:1", 1), ("as typed, no samples, refusals:3", 3))
}  # what the base refuses is a side of its own
LARGER = (
    AS_TYPED
    | REFUSING
    | {
        name: replace(TEXT[name], curve=False)
        for name in (
            *("fine-tune", "interpolation", "dare 0.9", "ties 0.1", "adadare exact 0.9", "lines", "null space, soft"),
            *("two-sided full", "two-sided full, no samples", "two-sided full, no samples, λ by itself"),
            *("two-sided at 1, block:512", "two-sided by gradients"),
        )
    }
)  # of a model of four times the size
