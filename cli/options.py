"""Options that commands share, as dataclasses: see `flags.with_options`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..fusion.arithmetic.two_sided import Protection
    from ..fusion.run.fuse import Settings
    from ..measuring import Calibration

BasePath = Annotated[
    Path,
    typer.Argument(help="The checkpoint before fine-tuning: a folder, a file, or a name on the hub that is cached."),
]
TunedPath = Annotated[Path, typer.Argument(help="The fine-tuned checkpoint.")]
TunedPaths = Annotated[list[Path], typer.Argument(help="The fine-tuned checkpoints.")]
ConfigName = Annotated[
    str | None,
    typer.Option("--config", help="A recipe: a file, or one that ships with sculpt by name. Flags override it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Where the curvature comes from.

    Attributes:
        data: Samples of the target task to calibrate on first: JSONL, text or token ids. Default: a text that ships.
        samples: How many calibration samples.
        max_length: Longest calibration sample, in tokens.
    """

    hessian: Annotated[
        Path | None,
        typer.Option("--hessian", help="Statistics that `sculpt calibrate` wrote.", rich_help_panel="Curvature"),
    ] = None
    data: Path | None = None
    no_calibration: Annotated[
        bool, typer.Option("--no-calibration", help="Use H = I: all directions alike.", rich_help_panel="Curvature")
    ] = False
    samples: int = 128
    max_length: int = 512
    hessian_of_other_model: Annotated[
        bool,
        typer.Option(
            "--hessian-of-other-model",
            help="Accept statistics that were measured on another model.",
            rich_help_panel="Curvature",
        ),
    ] = False

    def calibration(self, device: str, seed: int, protect: ProtectOptions | None = None) -> Calibration:
        """Return them as the library takes them."""
        from ..measuring import Calibration

        protect = protect or ProtectOptions()
        return Calibration(
            hessian=self.hessian,
            data=self.data,
            enabled=not self.no_calibration,
            samples=self.samples,
            max_length=self.max_length,
            seed=seed,
            device=device,
            of_other_model=self.hessian_of_other_model,
            protect=protect.protect,
            protect_samples=protect.protect_samples,
        )


@dataclass(frozen=True, kw_only=True)
class ProtectOptions:
    """What the base is to stay good at: two-sided curvature.

    Attributes:
        protect: General samples that the base is to stay good on: data as for --data, `default` for the text that
            ships, or the base's statistics from `sculpt calibrate BASE --full '*'`. Then --gamma is 1 and --sparsity 0
            unless they are given.
        protect_weight: λ: what an error on general inputs weighs against one on the target's. 0 keeps the fine-tune.
        curvature: full, block:512 (that many neighbouring inputs), or diagonal: what the two sides are compared by.
        protect_samples: How many general samples.
        protect_ridge: Added to each side's matrices, as a fraction of their mean diagonal.
        protect_scores: Whose inputs the drop probabilities go by.
    """

    protect: str | None = None
    protect_weight: float = 1.0
    curvature: str = "full"
    protect_samples: int = 128
    protect_ridge: float = 1e-3
    protect_scores: Literal["target", "both"] = "target"

    def protection(self, recipe: Protection | None = None, given: Collection[str] = ()) -> Protection | None:
        """Return how the base is protected, if it is: by a recipe, with the flags that were given over it."""
        from ..fusion.arithmetic.two_sided import Protection
        from ..fusion.errors import MethodError

        names = {
            "protect_weight": "weight", "curvature": "curvature", "protect_ridge": "ridge", "protect_scores": "scores"
        }  # fmt: skip
        chosen = {field: getattr(self, flag) for flag, field in names.items() if flag in given}
        if recipe is not None:
            return replace(recipe, **chosen)
        if self.protect is not None:
            return Protection(**chosen)
        idle = sorted({*names, "protect_samples"}.intersection(given))
        if idle:
            raise MethodError(
                f"`--{idle[0].replace('_', '-')}` has no effect without `--protect`",
                hint="`--protect default` protects the base on the text that ships",
            )
        return None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where.

    Attributes:
        config_from: Whose names, configuration and tokenizer the output takes.
        dtype: Float dtype to store: float32, float16, bfloat16 or float64. Default: the base's.
        max_shard_size: Largest output file, such as 5GB. Default: the base's shards.
        digest: Digest of input and output files in the manifest; blake3 and sha256 are cryptographic.
    """

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder. Default: TUNED-fused.", rich_help_panel="Output"),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.", rich_help_panel="Output")
    ] = False
    config_from: Literal["tuned", "base"] = "tuned"
    dtype: str | None = None
    max_shard_size: str | None = None
    digest: Literal["xxh3-128", "blake3", "sha256"] = "xxh3-128"


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which tensors are fused, and what may disagree.

    Attributes:
        include: Fuse only tensors whose name matches this glob; may be repeated.
        exclude: Do not fuse tensors whose name matches this glob; may be repeated.
        rest: Where tensors that are not selected are copied from.
        on_missing: A tensor that the tuned model lacks.
        on_extra: A tensor that only the tuned model has.
        on_mismatch: A tensor of another shape.
        on_dtype: A tensor of another float dtype.
        on_nonfinite: A tensor that holds NaN or infinity; `keep` writes the tuned model's element there.
    """

    include: list[str] | None = None
    exclude: list[str] | None = None
    rest: Literal["base", "tuned"] = "base"
    on_missing: Literal["error", "keep-base"] = "error"
    on_extra: Literal["error", "drop", "take-tuned"] = "error"
    on_mismatch: Literal["error", "keep-base", "take-tuned"] = "error"
    on_dtype: Literal["error", "convert"] = "error"
    on_nonfinite: Literal["error", "keep"] = "error"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How it is run.

    Attributes:
        seed: Of the random masks; an element's draw depends on seed, tensor name and place alone.
        device: auto, cpu, cuda, cuda:1, mps …; the result is the same.
        threads: CPU threads. Default: all cores.
        memory: Budget for what is worked on at once, such as 64MB; tensors of any size are cut to fit.
    """

    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    memory: str | None = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, from headers alone, and stop.", rich_help_panel="Run")
    ] = False


def settings_of(output: OutputOptions, selection: SelectionOptions, run: RunOptions) -> Settings:
    """Return the options as the library takes them."""
    from ..fusion.checkpoint.output.layout import parse_size
    from ..fusion.plan.plan import Policies, Selection
    from ..fusion.run.fuse import Settings

    return Settings(
        seed=run.seed,
        selection=Selection(
            include=tuple(selection.include or ()), exclude=tuple(selection.exclude or ()), rest=selection.rest
        ),
        policies=Policies(
            on_missing=selection.on_missing,
            on_extra=selection.on_extra,
            on_mismatch=selection.on_mismatch,
            on_dtype=selection.on_dtype,
            on_nonfinite=selection.on_nonfinite,
        ),
        dtype=output.dtype,
        max_shard_bytes=parse_size(output.max_shard_size) if output.max_shard_size else None,
        config_from=output.config_from,
        digest=output.digest,
        device=run.device,
        threads=run.threads,
        memory=parse_size(run.memory) if run.memory else None,
    )
