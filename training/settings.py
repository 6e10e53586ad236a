"""What a training is set to; no torch here, so that options can be checked and shown at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..fusion.arithmetic.per_model import as_tuple
from ..fusion.errors import MethodError
from ..fusion.methods.checks import above_zero, at_least, at_least_zero, fraction, one_of
from ..fusion.rows import RowOptions
from ..fusion.typed import Options

Layers = Literal["sum", "mean"]
AdapterMethodName = Literal["lorasculpt", "lora", "dora", "l2", "orth"]


@dataclass(frozen=True, kw_only=True)
class AdapterMethod(Options):
    """Which adapter is trained, and what keeps it from forgetting.

    Attributes:
        method: `lorasculpt`; or, to compare with, plain `lora`, `dora`, `l2` (λ·Σ‖s·BA‖_F²) or `orth`
            (λ·Σ‖(W/‖W‖)·Aᵀ‖_F²).
        rank: Rank r of every module.
        lora_alpha: The LoRA's α; B·A is scaled by α/r. Default: twice the rank.
        target_modules: Modules to adapt, by globs or the last parts of their names, separated by commas. Default: all
            linear layers of the language model but the output.
        density: Fraction of A's and of B's entries that LoRASculpt keeps, or two: of A, of B.
        warmup_steps: Optimiser steps before LoRASculpt's masks are chosen. Default: 100, or half of a training that has
            fewer than 200.
        alpha: Strength of LoRASculpt's regulariser in the language model.
        beta: Strength of LoRASculpt's regulariser in the connector.
        cmr: The regulariser is the `sum` over layers, as in the paper's Algorithm 1, or their `mean`, as in its
            released code. The mean is weaker for the same α and β.
        omega: How fast the importance of a weight saturates in the regulariser.
        guard: Modules to regularise, by globs or last parts of names. Default: those of q, k and v.
        connector: Glob of a multimodal model's connector, to adapt it too, without masks and with the L1 regulariser.
            Default: it is frozen.
        connector_full: Train all weights of the connector, without a regulariser, and not an adapter of it.
        connector_learning_rate: Peak learning rate of the connector. Default: as for the rest.
        strength: λ of l2 and orth. Default: 0.001.
    """

    method: AdapterMethodName = "lorasculpt"
    rank: int = 32
    lora_alpha: float | None = None
    target_modules: str | None = None
    density: tuple[float, ...] | float = 0.1
    warmup_steps: int | None = None
    alpha: float = 1e-3
    beta: float = 1e-5
    omega: float = 1.0
    cmr: Layers = "sum"
    guard: str | None = None
    connector: str | None = None
    connector_full: bool = False
    connector_learning_rate: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        one_of("method", self.method, get_args(AdapterMethodName))
        at_least("rank", self.rank, 1)
        one_of("cmr", self.cmr, get_args(Layers))
        if self.warmup_steps is not None and self.warmup_steps < 2:
            raise MethodError(
                f"`warmup_steps` must be at least 2, got {self.warmup_steps}",
                hint="the learning rate of the first step is 0, so that there is nothing to choose masks by after it",
                options=["warmup_steps"],
            )
        for density in as_tuple(self.density):
            fraction("density", density)
        for name in ("alpha", "beta", "strength"):
            if getattr(self, name) is not None:
                at_least_zero(name, getattr(self, name))
        for name in ("lora_alpha", "omega", "connector_learning_rate"):
            if getattr(self, name) is not None:
                above_zero(name, getattr(self, name))
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Raise MethodError for a setting that the method has no use for."""
        default = {
            "density": 0.1,
            "warmup_steps": None,
            "alpha": 1e-3,
            "beta": 1e-5,
            "omega": 1.0,
            "cmr": "sum",
            "guard": None,
        }
        idle = []
        if self.method != "lorasculpt":
            idle = [name for name, value in default.items() if getattr(self, name) not in (value, (value,))]
        if self.strength is not None and self.method not in ("l2", "orth"):
            idle.append("strength")
        if idle:
            raise MethodError(
                f"{' and '.join(f'`{name}`' for name in idle)} would have no effect on {self.method}", options=idle
            )
        if self.connector is None:
            idle = ["beta"] if self.beta != default["beta"] else []
            idle += ["connector_full"] if self.connector_full else []
            idle += ["connector_learning_rate"] if self.connector_learning_rate is not None else []
        elif self.connector_full and self.beta != default["beta"]:
            raise MethodError(
                "`beta` would have no effect on a connector that is trained whole", options=["beta", "connector_full"]
            )
        if idle:
            raise MethodError(
                f"{' and '.join(f'`{name}`' for name in idle)} would have no effect without `connector`",
                options=[*idle, "connector"],
            )

    @property
    def scale_alpha(self) -> float:
        """The LoRA's α."""
        return 2 * self.rank if self.lora_alpha is None else self.lora_alpha

    @property
    def connectors(self) -> tuple[str, ...]:
        """Globs of the connector."""
        return split(self.connector)

    @property
    def adapted_connectors(self) -> tuple[str, ...]:
        """Globs of the connector, where it gets a LoRA."""
        return () if self.connector_full else self.connectors


@dataclass(frozen=True, kw_only=True)
class Schedule(RowOptions):
    """How long and how fast is trained, and how its data are read.

    Attributes:
        epochs: Passes over the data.
        max_steps: Number of optimiser steps, in place of the epochs.
        learning_rate: Peak learning rate; 3 % warm-up, then a cosine to zero.
        batch_size: Samples in a batch.
        gradient_accumulation: Batches for each optimiser step.
        max_length: Longest sample, in tokens.
        samples: Number of rows to draw at random, by the seed. Default: all.
        keep_epochs: Write the adapter of every epoch too, beside the output: `OUTPUT-epoch-1` and so on.
        save_steps: Optimiser steps between checkpoints, from which a killed run goes on; 0 writes none.
        seed: Seed for the order of samples and the first weights of the adapter.
        dtype: Dtype of the base's weights: float32, bfloat16, float16, or auto: float32 on a CPU, elsewhere as stored.
            The adapter is float32.
        device: auto, cpu, cuda or mps. `CUDA_VISIBLE_DEVICES` chooses among several.
    """

    epochs: float = 3.0
    max_steps: int | None = None
    learning_rate: float = 2e-4
    batch_size: int = 16
    gradient_accumulation: int = 1
    max_length: int = 1024
    samples: int | None = None
    keep_epochs: bool = False
    save_steps: int = 100
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("gradient_accumulation", 1), ("max_length", 2), ("save_steps", 0)):
            at_least(name, getattr(self, name), least)
        for name in ("max_steps", "samples"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        if not 0 <= self.seed < 1 << 32:
            raise MethodError(f"`seed` must be at least 0 and below 2³², got {self.seed}", options=["seed"])
        above_zero("epochs", self.epochs)
        above_zero("learning_rate", self.learning_rate)


def split(text: str | None) -> tuple[str, ...]:
    """Return the parts of a list that is separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
