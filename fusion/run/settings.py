"""What a fuse is told beside its models and its method. Little is imported here: the command line reads it at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..arithmetic.per_model import as_tuple
from ..arithmetic.two_sided import Protection
from ..errors import MethodError
from ..plan.options import Policies, Selection, Side
from ..typed import Options

if TYPE_CHECKING:
    from pathlib import Path

    from ..checkpoint.output.guard import Kind
    from ..methods import Method
    from ..plan.plan import Plan
    from ..plan.step import Request
    from .backend import Backend
    from .protector import Protector

OutputFormat = Literal["plain", "fp8", "mxfp4", "same"]
Rounding = Literal["auto", "nearest", "stochastic", "error-feedback"]
Digest = Literal["xxh3-128", "blake3", "sha256"]
Emitted = Literal["checkpoint", "patch"]
MAX_THREADS = 4096
FREE = ("device", "threads", "memory", "load_check", "tile_elements", "emit")  # no bit of the output depends on them


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """How a fuse is run, whatever the method.

    Attributes:
        seed: Seed of the random masks. Each element's random number depends only on the seed, the tensor's name and
            the element's place.
        dtype: Float dtype to store: float32, float16, bfloat16 or float64. Default: that of the base.
        output_format: Format of the output: plain floats; fp8, blocks of FP8 that transformers loads; mxfp4, for the
            experts of gpt-oss; or the same as the models.
        rounding: How floats are rounded to codes: nearest; stochastic, right on average; error-feedback, which
            corrects errors and needs full curvature; auto: error-feedback if there is full curvature, else nearest.
        max_shard_bytes: Largest output file, such as 5GB. Default: the base's shards.
        config_from: Model whose names, configuration and tokenizer the output has.
        tokenizer: Vocabulary of the output, if the models have different ones: base, union, or one of the models. Rows
            are matched by their tokens. Default: rows are matched by their place.
        digest: Digest of input and output files in the manifest: xxh3-128 is fast; blake3 and sha256 are cryptographic.
        device: auto, cpu, cuda, cuda:1, mps …; auto is the CPU, which is as fast as the disk. The result is the same
            on all devices, except for products of whole matrices (two-sided curvature); the manifest names the device.
        threads: CPU threads. Default: all cores.
        memory: Limit for data that is worked on at once, such as 64MB. Large tensors are cut into tiles.
        load_check: Refuse an output that transformers could not load completely, or with layers of another kind than
            those that they are made of. Only checked if the output has another layout than the inputs.
        emit: Write a checkpoint, or a patch, which makes the same checkpoint from the base.
        tile_elements: Elements that are worked on at once; no bit of the output depends on it.
        recipe: What a recipe says beyond these settings, for the manifest.
        protection: How the base is protected on general data, by two-sided curvature; or None.
    """

    seed: int = 0
    selection: Selection = field(default_factory=Selection)
    policies: Policies = field(default_factory=Policies)
    dtype: str | None = None
    output_format: OutputFormat = "plain"
    rounding: Rounding = "auto"
    max_shard_bytes: int | None = None
    config_from: Side = "tuned"
    tokenizer: str | None = None
    digest: Digest = "xxh3-128"
    device: str = "auto"
    threads: int | None = None
    memory: int | None = None
    load_check: bool = True
    emit: Emitted = "checkpoint"
    tile_elements: int | None = None
    recipe: Mapping[str, Any] | None = None
    protection: Protection | None = None

    def __post_init__(self) -> None:
        threads = 1 if self.threads is None else self.threads
        if not 1 <= threads <= MAX_THREADS:
            bound = "at least 1" if threads < 1 else f"at most {MAX_THREADS}"
            raise MethodError(f"`threads` must be {bound}, got {threads}", options=["threads"])
        if self.dtype is not None:
            # As recipes and configurations write it, too.
            object.__setattr__(self, "dtype", self.dtype.removeprefix("torch."))
            self.request()  # refuses what is no float dtype
        if self.rounding in ("stochastic", "error-feedback") and self.output_format == "plain":
            raise MethodError(
                f"`rounding` of `{self.rounding}` has no effect: floats are rounded to the nearest",
                hint="`output_format` of `fp8`, `mxfp4` or `same` stores codes",
                options=["rounding", "output_format"],
            )
        if self.digest not in get_args(Digest):
            raise MethodError(
                f"`digest` must be one of {', '.join(get_args(Digest))}, got `{self.digest}`", options=["digest"]
            )
        if self.emit not in get_args(Emitted):
            raise MethodError(
                f"`emit` must be one of {', '.join(get_args(Emitted))}, got `{self.emit}`", options=["emit"]
            )

    def kind(self, output: Path) -> Kind:
        """Return what kind of output there will be: a folder, unless its name is that of a file."""
        from ..checkpoint.output.guard import CHECKPOINT, SINGLE_FILE
        from ..patch.writer import PATCH

        if self.emit == "patch":
            return PATCH
        return SINGLE_FILE if output.suffix == ".safetensors" else CHECKPOINT

    def request(self, keep: tuple[tuple[tuple[str, ...], Side], ...] = ()) -> Request:
        """Return what is asked of every tensor; `keep` are globs of those that are copied all the same."""
        from ..plan.step import Request

        return Request(
            selection=self.selection,
            policies=self.policies,
            config_from=self.config_from,
            dtype=self.dtype,
            keep=keep,
        )

    def protector(self, plan: Plan) -> Protector | None:
        """Return what mixes the deltas of a plan before its method sees them, if the base is protected."""
        from .low_rank import low_rank_models
        from .protector import Protector, joins

        if self.protection is None:
            return None
        return Protector(
            self.protection,
            joins=joins(plan.method, len(plan.tuned)),
            by_tensor=all((step.method or plan.method).scope == "tensor" for step in plan.steps),
            low_rank=lambda: low_rank_models(plan),
            device="cpu" if self.device == "auto" else self.device,
        )

    def num_seen(self, method: Method, num_tuned: int) -> int:
        """Return how many tuned models a method sees: one where a protection puts several together before.

        Raises:
            MethodError: There are shares for another number of models.
        """
        from .protector import joins

        if self.protection is None:
            return num_tuned
        together, shares = joins(method, num_tuned), as_tuple(self.protection.shares)
        if not together and shares != (1.0,):
            why = "there is one" if num_tuned == 1 else f"{method.title} merges them itself"
            raise MethodError(
                f"`shares` are of fine-tunes that are put together before a method for one model, and {why}",
                options=["Protection.shares"],
            )
        if len(shares) not in (1, num_tuned):
            raise MethodError(
                f"`shares` has {len(shares)} values, and {num_tuned} models are merged", options=["Protection.shares"]
            )
        return 1 if together else num_tuned

    def backend(self, plan: Plan) -> Backend:
        """Return what computes a plan."""
        from .backend import pick_backend

        return pick_backend(
            self.device,
            threads=self.threads,
            tile_elements=self.tile_elements,
            num_elements=sum(step.num_fused for step in plan.steps),
            memory=self.memory,
        )

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest holds: all that can change the output, and the digest."""
        return {key: value for key, value in asdict(self).items() if key not in FREE}
