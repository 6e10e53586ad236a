"""LoRASculpt's regulariser of one layer: how much B·A moves the weights that the base relies on.

    S = |1/log(|W|/‖W‖_F + ε)|,  M = tanh(ω·S)
    ‖M ∘ BA‖_F, or for a connector ‖M ∘ BA‖_1

Liang et al., CVPR 2025 (arXiv:2503.16843). ε = 1e-15. Everything is computed in float32 whatever the weights' dtype,
as float16 rounds ε to zero (in float64 for float64 factors). BA has no scale α/r, as in the released code and in the
paper's W = W0 + BA; a strength of the regulariser is therefore tied to the scale that the LoRA trains with.

M, BA and both gradients are computed together in the forward, a tile of rows at a time: no BA exists as a whole, and
what is kept for the backward is of the size of A and B.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..fusion.methods.checks import one_of

EPSILON = 1e-15
TILE_ELEMENTS = 1 << 20  # of BA at once
Form = Literal["frobenius", "l1"]


def importance(weight: Tensor, norm: Tensor, omega: float, dtype: torch.dtype) -> Tensor:
    """Return M of some rows of W: near 1 where |W| is large, and never 0.

    Where all of ‖W‖ lies in one entry its logarithm is 0, S infinite, and M is 1.
    """
    share = weight.abs().to(dtype).div_(norm)
    return share.add_(EPSILON).log_().reciprocal_().abs_().mul_(omega).tanh_()


class _Conflict(torch.autograd.Function):
    """The norm, with its gradient by A and B; once differentiable."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor, omega: float, form: Form) -> Tensor:
        dtype = torch.promote_types(a.dtype, torch.float32)
        with torch.autocast(a.device.type, enabled=False):
            wide_a, wide_b = a.detach().to(dtype), b.detach().to(dtype)
            norm = torch.linalg.vector_norm(weight, dtype=dtype).clamp(min=torch.finfo(dtype).tiny)
            total = torch.zeros((), dtype=dtype, device=a.device)
            by_a, by_b = torch.zeros_like(wide_a), torch.empty_like(wide_b)
            height = max(1, TILE_ELEMENTS // a.shape[1])
            for start in range(0, len(b), height):
                rows = slice(start, start + height)
                scale = importance(weight[rows], norm, omega, dtype)
                move = wide_b[rows] @ wide_a
                if form == "frobenius":
                    move.mul_(scale)
                    total += torch.dot(move.view(-1), move.view(-1))
                    move.mul_(scale)
                else:
                    total += torch.sum(scale * move.abs())
                    move.sign_().mul_(scale)
                by_a.addmm_(wide_b[rows].T, move)
                by_b[rows] = move @ wide_a.T
            if form == "frobenius":
                total.sqrt_()
                # At B·A = 0, where training begins, the norm has no gradient; 0 is a subgradient, and torch's choice.
                inverse = torch.where(total > 0, 1 / total.clamp(min=torch.finfo(dtype).tiny), 0.0)
                by_a.mul_(inverse)
                by_b.mul_(inverse)
        ctx.save_for_backward(by_a, by_b)
        ctx.dtypes = a.dtype, b.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (decorated)
        by_a, by_b = ctx.saved_tensors
        (gradient,) = gradients
        found = (by.mul(gradient).to(dtype) for by, dtype in zip((by_a, by_b), ctx.dtypes, strict=True))
        return *found, None, None, None


def conflict(weight: Tensor, a: Tensor, b: Tensor, *, omega: float = 1.0, form: Form = "frobenius") -> Tensor:
    """Return ‖M ∘ BA‖ of one layer, a scalar that can be differentiated by A and B.

    Args:
        weight: W, frozen, (d_out, d_in), of any float dtype.
        a: (r, d_in).
        b: (d_out, r).
        omega: ω, how soon tanh saturates.
        form: `frobenius`, or `l1` as for connectors.
    """
    one_of("form", form, get_args(Form))
    found: Any = _Conflict.apply(a, b, weight, omega, form)
    return found
