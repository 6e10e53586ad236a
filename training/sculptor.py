"""LoRASculpt's masks: after the warm-up the largest entries of each A and B, fixed from then on.

Liang et al., CVPR 2025 (arXiv:2503.16843). The masks are applied after every optimiser step, so that what is saved at
any time is sparse; the released code applies them before each step only, and what it saves is not. What momentum pushes
back into an entry that was dropped is set to zero before anything sees it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..fusion.arithmetic.per_model import as_tuple, spread
from ..fusion.errors import MethodError, ModelError
from ..fusion.lora.density import count_of_product
from ..fusion.lora.prune import check_density, num_kept
from ..fusion.methods.tailor import largest
from .layers import adapted_layers, matches, whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """When and how much is dropped.

    Attributes:
        density: s_A and s_B, the fractions that are kept, or one for both; `floor(density·N)` entries of a matrix, of
            equal magnitudes those with the lowest index.
        warmup_steps: Optimiser steps before that, at least 1: B is zero before the first.
        connector: Modules without masks, by globs of their names.
    """

    density: float | tuple[float, ...] = 0.1
    warmup_steps: int = 100
    connector: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for density in as_tuple(self.density):
            check_density(density)
        if len(as_tuple(self.density)) > 2:
            raise MethodError(f"a density is one number, or two for A and B; got {len(as_tuple(self.density))}")
        if self.warmup_steps < 1:
            raise MethodError(
                f"the warm-up must have at least 1 step, got {self.warmup_steps}",
                hint="before the first step B is zero, so that there is nothing to choose by",
            )

    @property
    def densities(self) -> tuple[float, float]:
        """s_A and s_B."""
        a, b = spread("the density", self.density, 2)
        return a, b


@final
class Sculptor:
    """The masks of one model; for a loop of your own.

        sculptor = Sculptor(peft_model, Masking(density=0.1, warmup_steps=100))
        for step, batch in enumerate(batches, start=1):
            …
            optimizer.step()
            sculptor.after_step(step)

    Attributes:
        layers: The adapted layers that get masks.

    Raises:
        ModelError: The model has no LoRA.
    """

    def __init__(self, model: Any, masking: Masking) -> None:
        self.masking = masking
        every = adapted_layers(model)
        self.layers = [layer for layer in every if not matches(layer.name, masking.connector)]
        self._every = every
        self._dropped: dict[str, Tensor] = {}
        self._encoded: dict[str, str] = {}

    @property
    def masked(self) -> bool:
        """Whether the warm-up is over."""
        return bool(self._dropped)

    def after_step(self, step: int) -> None:
        """Apply the masks after optimiser step number `step`, counted from 1; make them when the warm-up ends.

        Raises:
            ModelError: A factor is not finite when its mask is made.
        """
        if not self._dropped and step >= self.masking.warmup_steps:
            self._choose()
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is dropped to zero."""
        for key, parameter in self._parameters():
            if key in self._dropped:
                parameter.masked_fill_(self._dropped[key], 0)

    @torch.no_grad()
    def density(self) -> float:
        """Return the fraction of non-zeros over all B·A; one is counted after another."""
        count = size = 0
        for layer in self._every:
            a, b = (whole(factor.detach()).flatten(1) for factor in (layer.a, layer.b))
            count += count_of_product(b, a)
            size += len(b) * a.shape[1]
        return count / size

    def state_dict(self) -> dict[str, str]:
        """Return the masks as text, one bit an entry, compressed; empty before the warm-up is over.

        No process waits for another here: a Trainer asks only the first.
        """
        return dict(self._encoded)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take the masks of `state_dict`.

        Raises:
            ModelError: They are damaged, or of another model.
        """
        known = dict(self._parameters())
        if state and set(state) != set(known):
            odd = sorted(set(state) ^ set(known))[0]
            raise ModelError(f"the masks are of another model: `{odd}` is in one and not in the other")
        self._dropped = {key: _like(known[key], _decode(text, known[key], key)) for key, text in state.items()}
        self._encoded = dict(state)

    def _parameters(self) -> Iterable[tuple[str, Tensor]]:
        for layer in self.layers:
            yield f"{layer.name}.A", layer.a
            yield f"{layer.name}.B", layer.b

    @torch.no_grad()
    def _choose(self) -> None:
        density_a, density_b = self.masking.densities
        untrained = []
        for key, parameter in self._parameters():
            magnitude = whole(parameter.detach()).abs()
            if not bool(torch.isfinite(magnitude).all()):
                raise ModelError(f"`{key}` is not finite after the warm-up", hint="lower the learning rate")
            if not bool(magnitude.any()):
                untrained.append(key)
            count = num_kept(density_a if key.endswith(".A") else density_b, magnitude.numel(), key)
            dropped = ~largest(magnitude, count)
            self._dropped[key], self._encoded[key] = _like(parameter, dropped), _encode(dropped)
        if all(key in untrained for key, _ in self._parameters() if key.endswith(".B")):
            self._dropped, self._encoded = {}, {}
            raise MethodError(
                f"every B is still zero after the warm-up of {self.masking.warmup_steps} steps, so there is nothing to "
                "choose masks by",
                hint="a longer warm-up, or a learning rate that is above 0 from the first step",
                options=["warmup_steps"],
            )
        if untrained:
            logger.warning(
                "%d factors, such as `%s`, were still zero after the warm-up of %d steps: their masks are arbitrary",
                len(untrained),
                untrained[0],
                self.masking.warmup_steps,
            )


def _like(parameter: Tensor, mask: Tensor) -> Tensor:
    """Return a mask on the parameter's device, sharded as it is."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return mask.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    placements: Sequence[Any] = parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(mask.to(parameter.device), mesh, placements)


def _encode(mask: Tensor) -> str:
    bits = np.packbits(mask.cpu().numpy().reshape(-1))
    return base64.b85encode(zlib.compress(bits.tobytes(), 6)).decode("ascii")


def _decode(text: str, parameter: Tensor, key: str) -> Tensor:
    shape = tuple(parameter.shape)
    size = parameter.numel()
    try:
        bits = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
        mask = np.unpackbits(bits, count=size).reshape(shape)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise ModelError(f"the mask of `{key}` is damaged: {error}") from error
    if len(bits) != -(-size // 8):
        raise ModelError(f"the mask of `{key}` is of another size than {list(shape)}")
    return torch.from_numpy(mask.astype(bool))
