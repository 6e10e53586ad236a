"""One layer after the other: each is measured behind the layers before it as they are fused.

    python benchmarks/forgetting/sequential.py base/ sft/ --target target.jsonl --protect general.jsonl -o fused/
    python benchmarks/forgetting/sequential.py base/ code/ math/ --target code.jsonl math.jsonl --alpha 0.9 -o merged/

With `--protect`, two-sided curvature as `sculpt fuse --protect` does not measure it: there every layer is measured in
the fine-tunes and in the base as they are. With `--alpha`, RegMean++ (Nguyen et al., arXiv:2508.03121): RegMean's
average of linear layers, each fine-tune's own layer run behind the merged ones before it; all else is averaged, the
embeddings first. For models of the Llama family, held in memory as a whole.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sculpt
import torch
from sculpt.fusion.arithmetic.curvature import Curvature
from torch import Tensor

Hidden = list[tuple[Tensor, Tensor]]  # of each sample: hidden state (1, tokens, width), and positions
Known = Curvature | None
Combine = Callable[[Tensor, Sequence[Tensor], Sequence[Known], Known], Tensor]  # base, tuned, their statistics, general


class Side:
    """Samples on their way through a model whose first layers are fused.

    Args:
        model: Whose layers are measured.
        rows: Token ids of each sample, (1, tokens).
        embeddings: What the samples begin as.
    """

    def __init__(self, model: Any, rows: Sequence[Tensor], embeddings: Tensor) -> None:
        self.model = model
        self.hidden: Hidden = [(embeddings[row], torch.arange(row.shape[1])[None]) for row in rows]

    def through(self, layer: Any) -> Hidden:
        """Return the hidden states behind a layer."""
        found = []
        for state, positions in self.hidden:
            rotary = self.model.model.rotary_emb(state, positions)
            out = layer(state, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            found.append((out[0] if isinstance(out, tuple) else out, positions))
        return found

    def measured(self, layer: Any) -> dict[str, Curvature]:
        """Return the curvature of a layer's weights, its own inputs being those behind the fused layers."""
        grams: dict[str, Tensor] = {}
        counts: dict[str, int] = defaultdict(int)

        def hook(name: str) -> Any:
            def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
                rows = inputs[0].reshape(-1, inputs[0].shape[-1])
                grams[name] = grams.get(name, 0) + (rows.T @ rows).double()
                counts[name] += len(rows)

            return add

        linear = {n: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        handles = [module.register_forward_pre_hook(hook(name)) for name, module in linear.items()]
        self.through(layer)
        for handle in handles:
            handle.remove()
        return {f"{name}.weight": curvature(gram, counts[name]) for name, gram in grams.items()}

    def before_head(self) -> Curvature:
        """Return the curvature of the output layer."""
        rows = torch.cat([self.model.model.norm(state)[0] for state, _ in self.hidden])
        return curvature((rows.T @ rows).double(), len(rows))


def curvature(gram: Tensor, num_tokens: int) -> Curvature:
    return Curvature(terms=(gram.diagonal().numpy()[None],), num_tokens=num_tokens, gram=gram.float().numpy())


def two_sided(weight: float) -> Combine:
    """Return what mixes deltas by the inputs of both sides; without any it interpolates."""
    settings = sculpt.Settings(protection=sculpt.Protection(weight=weight))
    method = sculpt.TaskArithmetic()

    def combine(base: Tensor, tuned: Sequence[Tensor], known: Sequence[Known], general: Known) -> Tensor:
        if general is None:
            return base + (tuned[0] - base) / (1 + weight)
        return sculpt.apply(method, base, list(tuned), curvature=list(known), general=general, settings=settings)

    return combine


def regmean(alpha: float) -> Combine:
    """Return RegMean's average."""
    method = sculpt.RegMean(alpha=alpha)
    return lambda base, tuned, known, _general: sculpt.apply(method, base, list(tuned), curvature=list(known))


@torch.no_grad()
def fuse(
    base: Any,
    tuned: Sequence[Any],
    fused: Any,
    *,
    targets: Sequence[Sequence[Tensor]],
    general: Sequence[Tensor],
    combine: Combine,
    averages_embeddings: bool,
) -> None:
    """Fill a model with what base and fine-tunes are fused to.

    Args:
        fused: A copy of the base, changed in place.
        targets: Of each fine-tune the token ids of samples.
        general: Token ids of general samples; none without a base term.
        averages_embeddings: Whether samples begin as averaged embeddings, or as each model's own.
    """
    models = (base, *tuned)
    embeddings = [model.model.embed_tokens.weight for model in models]
    if averages_embeddings:
        mean = torch.stack(embeddings[1:]).mean(0)
        embeddings = [mean] * len(models)
    sides = [Side(model, rows, own) for model, rows, own in zip(models, (general, *targets), embeddings, strict=True)]
    for layers in zip(*(model.model.layers for model in models), fused.model.layers, strict=True):
        *before, own = layers
        known = [side.measured(layer) for side, layer in zip(sides, before, strict=True)]
        parameters = [dict(layer.named_parameters()) for layer in before]
        for name, parameter in own.named_parameters():
            first, *others = (found[name] for found in parameters)
            parameter.copy_(combine(first, others, [one.get(name) for one in known[1:]], known[0].get(name)))
        for side in sides:
            side.hidden = side.through(own)
    if averages_embeddings:
        fused.model.embed_tokens.weight.copy_(embeddings[0])
    else:  # tied: what the output layer sees
        heads = [side.before_head() for side in sides]
        own = [model.model.embed_tokens.weight for model in models]
        fused.model.embed_tokens.weight.copy_(combine(own[0], own[1:], heads[1:], heads[0]))
    norms = [model.model.norm.weight for model in models]
    fused.model.norm.weight.copy_(combine(norms[0], norms[1:], [None] * len(tuned), None))


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path, nargs="+")
    parser.add_argument("--target", type=Path, nargs="+", required=True)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--protect", type=Path)
    way.add_argument("--alpha", type=float)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="has no effect: nothing is random")
    parser.add_argument("--output", "-o", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base, local_files_only=True)

    def model(folder: Path) -> Any:
        found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return found.eval()

    def rows(file: Path) -> list[Tensor]:
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        return [torch.tensor([tokenizer(text, truncation=True, max_length=512).input_ids]) for text in texts]

    fused = model(args.base)
    fuse(
        model(args.base),
        [model(folder) for folder in args.tuned],
        fused,
        targets=[rows(file) for file in args.target],
        general=rows(args.protect) if args.protect else [],
        combine=two_sided(args.weight) if args.protect else regmean(args.alpha),
        averages_embeddings=args.protect is None,
    )
    fused.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
