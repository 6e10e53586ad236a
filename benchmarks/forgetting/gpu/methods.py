"""The arms on stacks of weights: each takes what is known of base and fine-tunes and a strength, and gives a delta.

The mathematics is that of `sculpt`'s own commands and of `rivals/`, a whole stack of layers at a time: a fuse takes
tenths of a second on one GPU. `tests/benchmarks/test_gpu_arms.py` compares each arm with the command that it stands
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sculpt.benchmarks.forgetting.rivals.ace import Ace
from sculpt.benchmarks.forgetting.rivals.dg_hard import median_of_noise, omega
from sculpt.fusion.methods import IsoC, TsvM, Wudi
from torch import Tensor

from .stacks import AFTER, EMBEDDINGS, Stacks, inputs_of_kind, matrices

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
SUMS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SMALL = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RIDGE = 1e-3
SOLVED = 1 << 25  # elements of what is factorised at once
DELTAS = ("delta", "root", "root, scaled")  # forms that take A from the delta


@dataclass
class Known:
    """What is known of a base and its fine-tunes; measured when an arm asks.

    Attributes:
        measure: Measures `target`, `answers`, `gradients`, `fisher` of fine-tune k, or `general`, `chats` (what of the
            general set the base answered), `general gradients`, `general fisher`, `magnitudes` of the base.
        memory: Of the arm that runs: what does not depend on its strength.
    """

    base: Stacks
    deltas: list[Stacks]
    measure: Callable[[str, int], Any]
    memory: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def depth(self, kind: str) -> Tensor | float:
        """Return l/(L − 1) of each layer, to multiply a stack by; 0 of what is in none."""
        stack = self.base[kind]
        if len(stack) == 1:
            return 0.0
        return torch.linspace(0, 1, len(stack), device=stack.device).reshape(-1, *[1] * (stack.ndim - 1))


def scaled(delta: Stacks, by: float) -> Stacks:
    return {kind: by * stack for kind, stack in delta.items()}


def total(deltas: Sequence[Stacks]) -> Stacks:
    return {kind: sum(delta[kind] for delta in deltas) for kind in deltas[0]}  # pyright: ignore[reportReturnType]


def trimmed(delta: Stacks, density: float) -> Stacks:
    """Return the largest elements of each tensor."""

    def one(tensor: Tensor) -> Tensor:
        flat = tensor.abs().flatten()
        keep = int(density * flat.numel())
        if not keep:
            return torch.zeros_like(tensor)
        cut = flat.kthvalue(flat.numel() - keep + 1).values
        return tensor.where(tensor.abs() >= cut, 0)

    return {kind: torch.stack([one(tensor) for tensor in stack]) for kind, stack in delta.items()}


def dropped(delta: Stacks, sparsity: float, seed: int = 0) -> Stacks:
    """Return a random part of the elements, rescaled."""
    found = {}
    for number, (kind, stack) in enumerate(sorted(delta.items())):
        generator = torch.Generator(stack.device).manual_seed(1000 * seed + number)
        kept = torch.rand(stack.shape, generator=generator, device=stack.device) >= sparsity
        found[kind] = stack * kept / (1 - sparsity)
    return found


def elected(deltas: Sequence[Stacks]) -> Stacks:
    """Return the mean of those that have the sign of the sum, as TIES."""
    found = {}
    for kind in deltas[0]:
        stacks = [delta[kind] for delta in deltas]
        sign = torch.where(sum(stacks) >= 0, 1.0, -1.0)  # pyright: ignore[reportArgumentType, reportCallIssue]
        agreeing = [(stack * sign > 0) for stack in stacks]
        count = sum(one.float() for one in agreeing)
        summed = sum(stack * one for stack, one in zip(stacks, agreeing, strict=True))
        found[kind] = summed / count.clamp(min=1)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return found


def adadare(known: Known, gamma: float, sparsity: float = 0.9) -> Stacks:
    """Return AdaDARE-γ's delta, exact allocation, by the diagonal of the target's moments, of embeddings too."""

    def make() -> Stacks:
        moments, found = known.measure("target", 0), {}
        for number, (kind, stack) in enumerate(sorted(known.deltas[0].items())):
            scores = stack.abs()
            if stack.ndim == 3:
                diagonal = moments[inputs_of_kind(kind)].diagonal(dim1=-2, dim2=-1)
                scores = scores * (2 * known.measure("tokens", 0) * diagonal[:, None] + 1).sqrt()
            flat = scores.flatten(1)
            wanted = torch.minimum((1 - sparsity) * torch.full_like(flat[:, 0], flat.shape[1]), (flat > 0).sum(1))
            low, high = torch.full_like(wanted, -60), torch.full_like(wanted, 60)
            for _ in range(50):  # log c, by bisection
                middle = (low + high) / 2
                more = (flat * middle.exp()[:, None]).clamp(max=1).sum(1) < wanted
                low, high = torch.where(more, middle, low), torch.where(more, high, middle)
            keep = (scores * high.exp().reshape(-1, *[1] * (stack.ndim - 1))).clamp(max=1)
            generator = torch.Generator(stack.device).manual_seed(number)
            drawn = torch.rand(stack.shape, generator=generator, device=stack.device) < keep
            found[kind] = torch.where(drawn, stack / keep.clamp(min=1e-12), 0)
        return found

    return scaled(known.once("adadare", make), gamma)


def lines(known: Known, alpha: float, weight: float = 1.0) -> Stacks:
    return {
        kind: weight * (alpha + (1 - alpha) * known.depth(kind)) * stack for kind, stack in total(known.deltas).items()
    }


def dg_hard(known: Known, threshold: float) -> Stacks:
    """Return what stands out of noise, by the eigenvectors of the smaller side."""

    def make() -> dict[str, Any]:
        found = {}
        for kind in matrices(known.deltas[0]):
            stack = known.deltas[0][kind]
            wide = stack.shape[-2] < stack.shape[-1]
            x = stack.double()
            found[kind] = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
        return found

    spectra, delta = known.once("spectra", make), dict(known.deltas[0])
    for kind, (squares, vectors) in spectra.items():
        stack = delta[kind]
        values, beta = squares.clamp(min=0).sqrt(), min(stack.shape[1:]) / max(stack.shape[1:])
        cut = threshold * omega(beta) * values.median(-1, keepdim=True).values / median_of_noise(beta)
        kept = (vectors * (values > cut)[:, None]).float() @ vectors.mT.float()
        delta[kind] = kept @ stack if stack.shape[-2] < stack.shape[-1] else stack @ kept
    return delta


def cgm_soft(known: Known, alpha: float) -> Stacks:
    tuned, base = known.measure("fisher", 0), known.measure("general fisher", 0)
    return {
        kind: torch.where(both := tuned[kind] + alpha * base[kind] > 0, tuned[kind], 1.0)
        / torch.where(both, tuned[kind] + alpha * base[kind], 1 + alpha)
        * stack
        for kind, stack in known.deltas[0].items()
    }


def cgm_hard(known: Known, reverted: float) -> Stacks:
    tuned, base, found = known.measure("fisher", 0), known.measure("general fisher", 0), {}
    for kind, stack in known.deltas[0].items():
        scores = (tuned[kind] - base[kind]) * stack.square()
        order = scores.sort(dim=-1, stable=True).indices[..., : int(reverted * stack.shape[-1])]
        found[kind] = stack.scatter(-1, order, 0.0)
    return found


def aim(known: Known, omega_: float) -> Stacks:
    """Return the delta relaxed column by column by how large general activations are."""
    sizes, found = known.measure("magnitudes", 0), dict(known.deltas[0])
    for kind in matrices(known.deltas[0]):
        size = sizes[inputs_of_kind(kind)]
        share = size / size.amax(-1, keepdim=True).clamp(min=1e-30)
        found[kind] = (1 - (1 - omega_) * share)[:, None] * known.deltas[0][kind]
    return found


def curvature(known: Known, form: str, k: int, kind: str, layers: slice, general: Tensor) -> Tensor:
    """Return A of a fine-tune for the matrices of a kind, float64 (layers, width, width)."""
    own = general.diagonal(dim1=-2, dim2=-1)
    if form == "identity":
        return torch.diag_embed(own.mean(-1, keepdim=True).expand_as(own))
    if form in DELTAS:
        delta = known.deltas[k][kind][layers]
        if form == "root, scaled":
            moment = scaled_to(rooted(known, delta, ("root", k, kind, layers.start)), own)
        elif form == "root":
            scale = scale_to(delta.double().square().sum(1), own)
            moment = rooted(known, delta * scale[:, None], ("root", k, kind, layers.start))
        else:
            moment = scaled_to((delta.mT @ delta).double(), own)
        return moment * (own.sum(-1) / moment.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300))[:, None, None]
    inputs = inputs_of_kind(kind)
    if form == "gradients" and inputs in (weighed := known.measure(form, k)):
        # The directions are the gradients', the size is the samples'.
        return directed(known.measure("target", k)[inputs][layers].double(), weighed[inputs][layers].double())
    return known.measure("target" if form == "gradients" else form, k)[inputs][layers].double()


def scaled_to(moment: Tensor, diagonal: Tensor) -> Tensor:
    """Return a moment with another diagonal, float64."""
    root = scale_to(moment.diagonal(dim1=-2, dim2=-1), diagonal)
    return moment * root[:, None] * root[:, :, None]


def scale_to(squares: Tensor, wanted: Tensor) -> Tensor:
    """Return what columns with these sums of squares are multiplied by to have other ones; 0 where they are 0."""
    return torch.where(squares > 0, wanted / torch.where(squares > 0, squares, 1), 0).sqrt()


def rooted(known: Known, x: Tensor, key: Any) -> Tensor:
    """Return `(xᵀx)^½` of a stack (layers, rows, width), float64; the eigenvectors of its smaller side are kept."""
    x, wide = x.double(), x.shape[1] < x.shape[2]

    def make() -> Tensor:
        squares, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
        squares = squares.clamp(min=0)
        least = 1e-12 * squares[:, -1:]
        powers = torch.where(squares > least, squares.clamp(min=1e-300).rsqrt(), 0) if wide else squares.sqrt()
        return (vectors * powers[:, None]) @ vectors.mT

    root = known.once(key, make)
    return x.mT @ root @ x if wide else root


def protected(known: Known, chats: float, weighed: bool = False) -> Stacks:
    """Return G: of the general set, and of its chats once more as a side with a weight; or weighed by gradients."""
    general = known.measure("general", 0)
    if weighed:
        gradients = known.measure("general gradients", 0)
        return known.once("G by gradients", lambda: {k: directed(g, gradients.get(k)) for k, g in general.items()})
    if not chats:
        return general
    answered = known.measure("chats", 0)
    return known.once(("G", chats), lambda: {kind: one + chats * answered[kind] for kind, one in general.items()})


def directed(moment: Tensor, directions: Tensor | None) -> Tensor:
    """Return directions that have trace 1, with a moment's size; the moment itself where there are none."""
    if directions is None:
        return moment
    return directions * moment.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


def two_sided(known: Known, weight: float, form: str, chats: float = 0.0, weighed: bool = False) -> Stacks:
    """Return `(Σ_k δ_k·A_k)·(Σ_k A_k + λ·G)⁻¹`; of several A_k has G's trace."""
    several, found = len(known.deltas) > 1, {}
    general = protected(known, chats, weighed)
    tied: dict[str, list[str]] = {}
    for kind in matrices(known.base):
        tied.setdefault(kind if form in DELTAS else inputs_of_kind(kind), []).append(kind)
    for kinds in tied.values():
        parts: list[Tensor] = []
        step = max(1, SOLVED // known.base[kinds[0]].shape[-1] ** 2)
        for start in range(0, len(known.base[kinds[0]]), step):
            layers = slice(start, start + step)
            g = general[inputs_of_kind(kinds[0])][layers].double()
            size = g.diagonal(dim1=-2, dim2=-1).mean(-1)
            both, wanted = weight * ridged(g), None
            for k, delta in enumerate(known.deltas):
                a = curvature(known, form, k, kinds[0], layers, g)
                if several:
                    a = a * (size / a.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-300))[:, None, None]
                a = ridged(a)
                both = both + a
                own = torch.cat([delta[kind][layers] for kind in kinds], 1).double() @ a
                wanted = own if wanted is None else wanted + own
            assert wanted is not None
            parts.append(torch.cholesky_solve(wanted.mT, torch.linalg.cholesky(both)).mT.float())
        rows = torch.cat(parts).split([known.base[kind].shape[1] for kind in kinds], 1)
        found |= dict(zip(kinds, rows, strict=True))
    for kind, stack in known.base.items():
        if stack.ndim == 2:
            found[kind] = vectors(known, kind, weight, form, general)
    return found


def ridged(moment: Tensor) -> Tensor:
    size = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    return moment + RIDGE * size[:, None, None] * torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)


def vectors(known: Known, kind: str, weight: float, form: str, general: Stacks) -> Tensor:
    """Return what stays of the deltas of norms, by the diagonals of their normalised inputs; of biases a mean."""
    deltas = [delta[kind] for delta in known.deltas]
    after = next((inputs for name, inputs in AFTER.items() if kind.endswith(name)), None)
    if after is None or form in (*DELTAS, "identity"):
        return sum(deltas) / (len(deltas) + weight)  # pyright: ignore[reportReturnType]
    scale = known.base[kind].square().clamp(min=1e-12)
    g = mean_ridged(general[after].diagonal(dim1=-2, dim2=-1) / scale)
    sides = []
    for k in range(len(deltas)):
        a = known.measure("target" if form == "gradients" else form, k)[after].diagonal(dim1=-2, dim2=-1)
        a = mean_ridged(a / (known.base[kind] + deltas[k]).square().clamp(min=1e-12))
        sides.append(a)
    both = sum(sides) + weight * g
    return sum(delta * a for delta, a in zip(deltas, sides, strict=True)) / both  # pyright: ignore[reportReturnType]


def mean_ridged(diagonal: Tensor) -> Tensor:
    return diagonal + RIDGE * diagonal.mean(-1, keepdim=True)


def regmean(known: Known, alpha: float) -> Stacks:
    found = {}
    for kind, stack in known.base.items():
        deltas = [delta[kind] for delta in known.deltas]
        if stack.ndim == 2 or kind == EMBEDDINGS:
            found[kind] = sum(deltas) / len(deltas)
            continue
        both: Any = 0
        wanted: Any = 0
        for k, delta in enumerate(deltas):
            a = known.measure("target", k)[inputs_of_kind(kind)].double()
            a = alpha * a + (1 - alpha) * torch.diag_embed(a.diagonal(dim1=-2, dim2=-1))
            both, wanted = both + a, wanted + delta.double() @ a
        size = both.diagonal(dim1=-2, dim2=-1).mean(-1)
        both = both + 1e-9 * size[:, None, None] * torch.eye(both.shape[-1], dtype=both.dtype, device=both.device)
        found[kind] = torch.cholesky_solve(wanted.mT, torch.linalg.cholesky(both)).mT.float()
    return found


def fisher(known: Known, _strength: float) -> Stacks:
    weights = [known.measure("fisher", k) for k in range(len(known.deltas))]
    return {
        kind: sum(w[kind] * d[kind] for w, d in zip(weights, known.deltas, strict=True))  # pyright: ignore[reportReturnType]
        / sum(w[kind] for w in weights).clamp(min=1e-30)  # pyright: ignore[reportAttributeAccessIssue]
        for kind in known.base
    }


def model_stock(known: Known, _strength: float) -> Stacks:
    found, count = {}, len(known.deltas)
    for kind in known.base:
        deltas = [delta[kind].flatten(1) for delta in known.deltas]
        cosines = [
            torch.nn.functional.cosine_similarity(a, b, dim=1) for i, a in enumerate(deltas) for b in deltas[i + 1 :]
        ]
        cosine = sum(cosines) / len(cosines)
        share: Any = count * cosine / (1 + (count - 1) * cosine)
        mean = sum(delta[kind] for delta in known.deltas) / count
        found[kind] = share.reshape(-1, *[1] * (known.base[kind].ndim - 1)) * mean
    return found


def by_matrix(method: Any) -> Callable[[Known, float], Stacks]:
    """Return an arm of what makes one delta of several a matrix at a time; its strength is the scale."""

    def merged(known: Known) -> Stacks:
        found = {}
        for kind, stack in known.base.items():
            deltas = [delta[kind] for delta in known.deltas]
            if stack.ndim == 2:
                found[kind] = sum(deltas) / len(deltas)
                continue
            parts = []
            for layer in range(len(stack)):
                own = [delta[layer].clone() for delta in deltas if delta[layer].any()]
                parts.append(method.merged(kind, own) if own else torch.zeros_like(stack[layer]))
            found[kind] = torch.stack(parts)
        return found

    return lambda known, scale: scaled(known.once("merged", lambda: merged(known)), scale)


@dataclass(frozen=True)
class Arm:
    """A way to fuse, with its strengths, one of which is tried first."""

    run: Callable[[Known, float], Stacks]
    grid: tuple[float, ...]
    start: float


def weighted(form: str, chats: float = 0.0, *, weighed: bool = False) -> Callable[[Known, float], Stacks]:
    return lambda known, weight: two_sided(known, weight, form, chats, weighed)


SINGLE: Mapping[str, Arm] = {
    "fine-tune": Arm(lambda known, _: known.deltas[0], (1.0,), 1.0),
    "interpolation": Arm(lambda known, s: scaled(known.deltas[0], s), GAMMAS[:-1], 0.6),
    "two-sided": Arm(weighted("target"), LAMBDAS, 1.0),
    "two-sided, no samples": Arm(weighted("delta"), SMALL, 0.1),
    "two-sided, chats:3": Arm(weighted("target", 3.0), SMALL, 0.3),
    "two-sided, no samples, chats:1": Arm(weighted("delta", 1.0), SMALL, 0.1),
    "two-sided, no samples, chats:3": Arm(weighted("delta", 3.0), SMALL, 0.1),
    "two-sided by gradients, chats:3": Arm(weighted("gradients", 3.0), LAMBDAS, 0.3),
    "two-sided, no samples, root": Arm(weighted("root"), SMALL, 0.1),
    "two-sided, no samples, root, scaled": Arm(weighted("root, scaled"), SMALL, 0.1),
    "two-sided, G by gradients": Arm(weighted("target", weighed=True), LAMBDAS, 1.0),
    "two-sided, no samples, G by gradients": Arm(weighted("delta", weighed=True), SMALL, 0.1),
    "two-sided, both by gradients": Arm(weighted("gradients", weighed=True), LAMBDAS, 1.0),
    "two-sided by answers": Arm(weighted("answers"), SMALL, 0.1),
    "two-sided by gradients": Arm(weighted("gradients"), LAMBDAS, 1.0),
    "null space, soft": Arm(weighted("identity"), SMALL, 0.03),
    "ties 0.1": Arm(lambda k, s: scaled(k.once("trim", lambda: trimmed(k.deltas[0], 0.1)), s), SCALES, 1.4),
    "dare 0.9": Arm(lambda k, s: scaled(k.once("dare", lambda: dropped(k.deltas[0], 0.9)), s), GAMMAS, 0.6),
    "adadare exact 0.9": Arm(adadare, GAMMAS, 0.6),
    "lines": Arm(lines, SHARES, 0.3),
    "dg-hard": Arm(dg_hard, (0.2, 0.35, 0.5, 0.7, 1.0, 1.4), 0.7),
    "cgm soft": Arm(cgm_soft, ALPHAS, 1.0),
    "cgm hard": Arm(cgm_hard, SHARES[1:], 0.5),
    "aim": Arm(aim, SHARES[:6], 0.4),
}
MERGED: Mapping[str, Arm] = {
    "task arithmetic": Arm(lambda known, s: scaled(known.once("sum", lambda: total(known.deltas)), s), SUMS, 0.5),
    "regmean": Arm(regmean, (0.1, 0.5, 0.9, 0.99), 0.9),
    "two-sided": Arm(weighted("target"), LAMBDAS, 0.3),
    "two-sided, no samples": Arm(weighted("delta"), SMALL, 0.1),
    "two-sided by gradients": Arm(weighted("gradients"), LAMBDAS, 0.3),
    "two-sided, no samples, root": Arm(weighted("root"), SMALL, 0.1),
    "wudi": Arm(by_matrix(Wudi()), SUMS, 0.7),
    "actmat": Arm(by_matrix(Wudi(normalize=False)), SUMS, 0.7),
    "ties 0.1": Arm(
        lambda k, s: scaled(k.once("ties", lambda: elected([trimmed(d, 0.1) for d in k.deltas])), s), SCALES, 1.4
    ),
    "dare-ties 0.9": Arm(
        lambda k, s: scaled(k.once("ties", lambda: elected([dropped(d, 0.9, j) for j, d in enumerate(k.deltas)])), s),
        SUMS,
        0.7,
    ),
    "tsv-m": Arm(by_matrix(TsvM()), SUMS, 0.7),
    "iso-c": Arm(by_matrix(IsoC()), SUMS, 0.7),
    "ace": Arm(by_matrix(Ace()), SUMS, 0.7),
    "lines": Arm(lambda known, alpha: lines(known, alpha, 0.7), SHARES, 0.3),
    "model stock": Arm(model_stock, (1.0,), 1.0),
    "fisher by gradients": Arm(fisher, (1.0,), 1.0),
}
