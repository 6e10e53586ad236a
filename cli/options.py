"""Options that commands share: groups of the library's own option classes, and what only a command line needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.methods import Method
from ..fusion.plan.options import Policies, Selection
from ..fusion.ref import Asked
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .flags import FlagGroup, flag_of

T = TypeVar("T")

BasePath = Annotated[
    Path,
    typer.Argument(help="The model before fine-tuning: a folder, a file, or `org/model@revision` (docs/inputs.md)."),
]
TunedPath = Annotated[Path, typer.Argument(help="The fine-tuned model, or an adapter of the base.")]
TunedPaths = Annotated[list[Path], typer.Argument(help="The fine-tuned models, or adapters of the base.")]
ConfigName = Annotated[
    str | None,
    typer.Option("--config", help="A recipe: a file, or the name of one that ships with sculpt. Flags override it."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan, with memory and time, and stop.", rich_help_panel="Run"),
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the output goes, and whether it is made at all."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Output folder, or a file .safetensors. Default: TUNED-METHOD, such as sft-two-sided, beside it.",
        ),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")] = False
    dry_run: DryRun = False

    @property
    def may_exist(self) -> bool:
        """Whether an earlier output is no reason to refuse: nothing is written, or it is replaced."""
        return self.overwrite or self.dry_run


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `5GB`."""
    from ..fusion.checkpoint.output.layout import parse_size

    return parse_size(text)


def _one_or_several(given: list[T] | None) -> T | tuple[T, ...] | None:
    return given[0] if given and len(given) == 1 else tuple(given or ()) or None


def named_kinds(given: list[str] | None) -> tuple[str, ...]:
    """Return the names in `novels,csv`, or in several such texts."""
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


KINDS = Annotated[list[str] | None, typer.Option(metavar="KIND[,KIND…]")]
SIZE = Annotated[int | None, typer.Option(parser=parse_bytes, metavar="SIZE")]
TARGET = FlagGroup(of=Target, panel="Output")
SELECTION = FlagGroup(of=Selection, panel="Selection and disagreements")
POLICIES = FlagGroup(of=Policies, panel="Selection and disagreements")
SETTINGS = FlagGroup(
    of=Settings,
    panel="Run",
    panels=dict.fromkeys(
        ("config_from", "tokenizer", "dtype", "output_format", "rounding", "max_shard_bytes", "digest"), "Output"
    ),
    flags={"max_shard_bytes": "max_shard_size"},
    leave_out=("selection", "policies", "protection", "recipe", "tile_elements"),
    options={"max_shard_bytes": SIZE, "memory": SIZE},
)
PROTECT_ONLY = ("protect", "protect_samples", "protect_kinds", "protect_chats", "protect_keep", "protect_check")
CALIBRATION = FlagGroup(
    of=Calibration,
    panel="Curvature",
    panels=dict.fromkeys(PROTECT_ONLY, "Protection"),
    flags={
        "enabled": "calibration",
        "of_other_model": "hessian_of_other_model",
        "dtype": "calibration_dtype",
        "memory": "calibration_memory",
    },
    leave_out=("seed", "device"),  # the fuse's own
    options={
        "hessian": Annotated[list[Path] | None, typer.Option(metavar="FILE")],
        "data": Annotated[list[Path] | None, typer.Option(metavar="PATH")],
        "protect": Annotated[list[str] | None, typer.Option(metavar="PATH[:WEIGHT]|default|default/KIND[:WEIGHT]")],
        "protect_kinds": KINDS,
        "memory": SIZE,
    },
    convert=dict.fromkeys(("hessian", "data", "protect"), _one_or_several) | {"protect_kinds": named_kinds},
)
PROTECTION = FlagGroup(
    of=Protection,
    panel="Protection",
    flags={
        "weight": "protect_weight",
        "ridge": "protect_ridge",
        "scores": "protect_scores",
        "target": "target_curvature",
        "shares": "protect_shares",
    },
)


def refuse_missing(models: Iterable[Asked], files: Iterable[Path] = ()) -> None:
    """Refuse what is not there, before anything heavy is loaded.

    Raises:
        SculptError: The first that is not.
    """
    from ..fusion.checkpoint import find_model
    from ..fusion.errors import DataError
    from ..fusion.run.calibration import GENERAL

    for model in models:
        find_model(model)
    for file in files:
        if str(file) != GENERAL and not file.exists():
            raise DataError(f"`{file}` does not exist", hint=_meant(str(file)))


def _meant(name: str) -> str | None:
    """Return what may have been meant by a name of data under which nothing lies; None where nobody can guess."""
    from ..data.general import ASKED, kinds
    from ..fusion.errors import near
    from ..fusion.run.calibration import GENERAL, OF_SHIPPED, SHIPPED

    if name in (*kinds(), *ASKED):
        return f"`{OF_SHIPPED}{name}` is a kind of the general set"
    front, colon, weight = name.rpartition(":")
    if colon and (front == SHIPPED or front.startswith(OF_SHIPPED) or Path(front).exists()):
        return f"the weight of `{front}` is a number above 0, got `{weight}`"
    if "," in name and all(Path(part).exists() or part == SHIPPED for part in name.split(",")):
        return "give the option once for each"
    return f"as data the general set is `{GENERAL}`" if name == SHIPPED else near(name, [SHIPPED])


def refuse_idle(calibration: Calibration, method: Method, given: Collection[str]) -> None:
    """Refuse options of a calibration that a method has no use for, where no base is protected.

    Raises:
        MethodError: One was given.
    """
    from ..fusion.errors import MethodError

    unset = Calibration()
    for field, parameter in CALIBRATION.fields:
        # A flag may say what would be so without it; a recipe has no flags.
        if parameter in given or getattr(calibration, field.name) != getattr(unset, field.name):
            raise MethodError(
                f"`{flag_of(parameter)}` has no effect on {method.title} without `--protect`",
                hint="its deltas do not depend on what a model's inputs are",
            )


def flag_named(option: str) -> str:
    """Return the flag of an option as an error names it: a field, or `Class.field`."""
    owner, _, field = option.rpartition(".")
    group = next((group for group in (SETTINGS, CALIBRATION, PROTECTION) if group.of.__name__ == owner), None)
    return "-o" if option == "output" else flag_of(group.flags.get(field, field) if group else field)


def is_shared(option: str) -> bool:
    """Return whether an option, as an error names it, is one of those that `merge` takes too."""
    groups = (SETTINGS, CALIBRATION, PROTECTION, SELECTION, POLICIES)
    return option.rpartition(".")[2] in {field.name for group in groups for field, _ in group.fields}


def protection_of(
    protection: Protection, calibration: Calibration, given: Collection[str], recipe: Protection | None = None
) -> Protection | None:
    """Return how the base is protected, if it is: by a recipe, with the flags that were given over it.

    Raises:
        MethodError: A flag says how, and nothing that it is protected.
    """
    chosen = PROTECTION.chosen(protection, given)
    if recipe is not None:
        return replace(recipe, **chosen)
    if calibration.protect is not None:
        return replace(protection, **chosen)
    refuse_idle_protection(given)
    return None


def refuse_idle_protection(given: Collection[str]) -> None:
    """Refuse flags that say how a base is protected, where none is.

    Raises:
        MethodError: One was given.
    """
    from ..fusion.errors import MethodError

    idle = sorted({*(parameter for _, parameter in PROTECTION.fields), *PROTECT_ONLY}.intersection(given))
    if idle:
        raise MethodError(
            f"`{flag_of(idle[0])}` has no effect without `--protect`",
            hint="`--protect default` protects the base on the general set that ships",
        )
