"""Two-sided curvature, one layer after the other: each is measured behind the fused layers before it.

    python benchmarks/forgetting/sequential.py base/ sft/ --target target.jsonl --protect general.jsonl -o fused/

What `sculpt fuse --protect` does not do: there every layer is measured in the fine-tune and in the base as they are.
For models of the Llama family, held in memory as a whole.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.two_sided import Protection
from sculpt.fusion.run.protector import Protector
from torch import Tensor

Hidden = list[tuple[Tensor, Tensor]]  # of each sample: hidden state (1, tokens, width), and positions


class Side:
    """Samples on their way through a model whose first layers are fused.

    Args:
        model: Whose layers are measured.
    """

    def __init__(self, model: Any, tokenizer: Any, file: Path) -> None:
        self.model = model
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [torch.tensor([tokenizer(text, truncation=True, max_length=512).input_ids]) for text in texts]
        self.hidden: Hidden = [(model.model.embed_tokens(row), torch.arange(row.shape[1])[None]) for row in rows]

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
        return {
            f"{name}.weight": Curvature(
                terms=(gram.diagonal().numpy()[None],), num_tokens=counts[name], gram=gram.float().numpy()
            )
            for name, gram in grams.items()
        }


def fuse_parameter(
    base: Tensor, tuned: Tensor, sides: tuple[Curvature, Curvature] | None, protection: Protection
) -> Tensor:
    curvature = None if sides is None else replace(sides[0], general=sides[1])
    flat, moved = base.numpy().reshape(-1), tuned.numpy().reshape(-1)
    shape = tuple(base.shape)
    whole = Protector(protection).tuned("w", shape, curvature, 0, base.numel(), lambda a, b: (flat[a:b], moved[a:b]))
    return torch.from_numpy(np.ascontiguousarray(whole).reshape(shape))


@torch.no_grad()
def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--protect", type=Path, required=True)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="has no effect: nothing is random")
    parser.add_argument("--output", "-o", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base, local_files_only=True)
    base, tuned, fused = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        for folder in (args.base, args.tuned, args.base)
    )
    protection = Protection(weight=args.weight)
    target, general = Side(tuned, tokenizer, args.target), Side(base, tokenizer, args.protect)
    layers = zip(base.model.layers, tuned.model.layers, fused.model.layers, strict=True)
    for before, after, own in layers:
        ours, theirs = target.measured(after), general.measured(before)
        tuned_parameters = dict(after.named_parameters())
        for name, parameter in own.named_parameters():
            sides = (ours[name], theirs[name]) if name in ours else None
            parameter.copy_(fuse_parameter(parameter, tuned_parameters[name], sides, protection))
        target.hidden, general.hidden = target.through(own), general.through(own)
    embedding = fused.model.embed_tokens.weight
    heads = [head_inputs(side) for side in (target, general)]
    embedding.copy_(fuse_parameter(embedding, tuned.model.embed_tokens.weight, (heads[0], heads[1]), protection))
    norm = fused.model.norm.weight
    norm.copy_(fuse_parameter(norm, tuned.model.norm.weight, None, protection))
    fused.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


def head_inputs(side: Side) -> Curvature:
    """Return the curvature of the tied output layer."""
    rows = torch.cat([side.model.model.norm(state)[0] for state, _ in side.hidden])
    gram = (rows.T @ rows).double()
    return Curvature(terms=(gram.diagonal().numpy()[None],), num_tokens=len(rows), gram=gram.float().numpy())


if __name__ == "__main__":
    main()
