"""Measure what rivals want to know of a model and its samples, and write it to a file.

    python -m sculpt.benchmarks.forgetting.rivals.measure fisher sft/ --data target.jsonl -o fisher.safetensors

`fisher`: E[g²] of every parameter, g the gradient of a sample's mean loss, squared and let go of as the backward comes
by, so that one gradient is in memory and not all. `magnitudes`: E|x| of the inputs of every module with a weight but
embeddings. `gradients`: Σ_t ‖g_t‖²·x_t·x_tᵀ of every linear layer, g_t the gradient at its output for token t, one
backward a sample: the inputs weighted by what is learned at them. It wants `--like`, statistics of `sculpt calibrate
--full '*'`, which it has the form and the traces of. For models whose parameters have the names that the checkpoint
stores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from sculpt.data.batching import collate
from sculpt.data.encoding import Encoder
from sculpt.data.example import Example
from sculpt.data.rows import open_rows
from sculpt.data.sampling import draw_samples
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.hessian.store.diagonal import DiagonalHessian
from sculpt.hessian.store.file_format import is_ours
from sculpt.live.model import load_model
from sculpt.training.full import answer_loss
from torch import Tensor, nn

NUM_SAMPLES = "num_samples"


def load(file: Path | None) -> Mapping[str, Curvature]:
    """Return statistics by tensor name: sculpt's, or what `fisher` and `magnitudes` wrote, as if it were Σx²."""
    if file is None:
        return {}
    if is_ours(file):
        return DiagonalHessian.load(file)
    with safe_open(file, "numpy") as opened:
        count = int(opened.metadata()[NUM_SAMPLES])
        return {
            name: Curvature(terms=(opened.get_tensor(name) * np.float32(count),), num_tokens=count)
            for name in opened.keys()  # noqa: SIM118 (it is no dict)
        }


def stored_names(model: Any) -> dict[int, str]:
    """Return the names of parameters by identity; tied ones have the first."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def losses(model: Any, examples: Sequence[Example]) -> Iterator[Tensor]:
    """Yield the mean loss of what is to be predicted in each example."""
    for example in examples:
        yield answer_loss(model, collate([example]))


def fisher(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return the mean over the examples of each parameter's squared gradient."""
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}

    def add(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total[name].addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        return hook

    handles = [p.register_post_accumulate_grad_hook(add(name)) for name, p in model.named_parameters()]
    for loss in losses(model, examples):
        loss.backward()
    for handle in handles:
        handle.remove()
    return {name: found.div_(len(examples)) for name, found in total.items()}


@torch.no_grad()
def magnitudes(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return the mean over tokens of |x| for each input of a module with a weight, broadcast over its outputs.

    Of a tied output layer too, under the embeddings' name.
    """
    names, total, counts = stored_names(model), {}, {}

    def add(name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            total[name] = total.get(name, 0) + rows.abs().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    watched = [
        module for module in model.modules() if hasattr(module, "weight") and not isinstance(module, nn.Embedding)
    ]
    handles = [module.register_forward_pre_hook(add(names[id(module.weight)])) for module in watched]
    for example in examples:
        model(**collate([example]).inputs_on(model.device))
    for handle in handles:
        handle.remove()
    shapes = {names[id(module.weight)]: module.weight.ndim for module in watched}
    return {
        name: (found / counts[name]).reshape((1,) * (shapes[name] - 1) + (-1,)).contiguous()
        for name, found in total.items()
    }


def gradients(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return Σ_t ‖g_t‖²·x_t·x_tᵀ of each linear layer, float64 (inputs, inputs)."""
    names, total, inputs = stored_names(model), {}, {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, given: tuple[Tensor, ...], _output: Tensor) -> None:
            inputs[name] = given[0].detach()

        return hook

    def add(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
            rows = inputs.pop(name).reshape(-1, total[name].shape[0])
            weights = outputs[0].reshape(len(rows), -1).square().sum(1)
            total[name] += (rows.T @ (rows * weights[:, None])).double()

        return hook

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            name = names[id(module.weight)]
            total[name] = torch.zeros(2 * (module.in_features,), dtype=torch.float64, device=model.device)
            handles += [module.register_forward_hook(keep(name)), module.register_full_backward_hook(add(name))]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embeddings = model.get_input_embeddings()
    # Something has to want a gradient for the backward to come by; the weights' own are never made.
    handles.append(embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_()))
    for loss in losses(model, examples):
        loss.backward()
    for handle in handles:
        handle.remove()
    return total


def weighted_like(like: DiagonalHessian, moments: Mapping[str, Tensor]) -> DiagonalHessian:
    """Return statistics whose matrices are these, each scaled to the trace that it had."""
    found = dict(like)
    for name, moment in moments.items():
        own = like.get(name)
        if own is None or own.gram is None or not moment.any():
            continue
        scale = float(np.trace(own.gram, dtype=np.float64)) / float(moment.trace())
        gram = (moment * scale).cpu().numpy()
        diagonal = gram.diagonal().reshape((1,) * (own.terms[0].ndim - 1) + (-1,))
        terms = tuple(np.ascontiguousarray(diagonal) if term.shape == diagonal.shape else term for term in own.terms)
        found[name] = replace(own, terms=terms, gram=gram.astype(np.float32))
    return replace(like, curvatures=found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fisher", "magnitudes", "gradients"))
    parser.add_argument("model", help="a folder, or a name on the hub that is cached")
    parser.add_argument("--base", help="what an adapter is of")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--like", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", "-o", type=Path, required=True)
    args = parser.parse_args(arguments)
    checkpoint = open_checkpoint(args.model, None if args.base is None else open_checkpoint(args.base))
    live = load_model(checkpoint, device=args.device, dtype=torch.float32)
    encoder = Encoder(live.path, live.model, max_length=args.max_length)
    examples = draw_samples(open_rows(args.data), encoder, count=args.samples, seed=0)
    made = {"fisher": fisher, "magnitudes": magnitudes, "gradients": gradients}[args.what](live.model, examples)
    if args.what == "gradients":
        weighted_like(DiagonalHessian.load(args.like), made).save(args.output)
        return
    arrays = {name: found.cpu().numpy() for name, found in made.items()}
    save_file(arrays, args.output, metadata={NUM_SAMPLES: str(len(examples))})


if __name__ == "__main__":
    main()
