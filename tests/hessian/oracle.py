"""Σx² by hooks on a whole model in memory, in float64, told to the checkpoint by the values of its elements.

Nothing here is shared with the code under test: modules are hooked rather than operations, norms and unfolded
patches are written out, and a tensor of the checkpoint finds its elements among the parameters' by their values,
which are all different, so no renaming, stacking or permuting needs to be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Sums:
    """Dense Σx² of each parameter, and rows seen."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.sums: dict[str, Tensor] = {}

    def add(self, parameter: Any, values: Tensor | float, index: Any = slice(None)) -> None:
        if parameter is None:
            return
        name = self.names[id(parameter)]
        if name not in self.sums:
            self.sums[name] = torch.zeros(parameter.shape, dtype=torch.float64)
        self.sums[name][index] += values


def _linear(sums: Sums, module: nn.Linear, args: tuple[Tensor, ...]) -> None:
    x = args[0].double().reshape(-1, args[0].shape[-1])
    sums.add(module.weight, x.square().sum(0))
    sums.add(module.bias, float(len(x)))


def _conv1d(sums: Sums, module: Conv1D, args: tuple[Tensor, ...]) -> None:
    x = args[0].double().reshape(-1, args[0].shape[-1])
    sums.add(module.weight, x.square().sum(0).unsqueeze(1))
    sums.add(module.bias, float(len(x)))


def _embedding(sums: Sums, module: nn.Embedding, args: tuple[Tensor, ...]) -> None:
    counts = torch.bincount(args[0].reshape(-1), minlength=module.num_embeddings)
    sums.add(module.weight, counts.double().unsqueeze(1))


def _norm(sums: Sums, module: Any, args: tuple[Tensor, ...]) -> None:
    x = args[0].double()
    if isinstance(module, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    eps = next(getattr(module, key) for key in ("eps", "variance_epsilon") if hasattr(module, key))
    x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    x = x.reshape(-1, x.shape[-1])
    sums.add(module.weight, x.square().sum(0))
    sums.add(getattr(module, "bias", None), float(len(x)))


def _conv(sums: Sums, module: Any, args: tuple[Tensor, ...]) -> None:
    """Unfold by convolving with a kernel that picks one position of one channel."""
    x = args[0].double()
    weight = module.weight
    groups, per_group = module.groups, weight.shape[1]
    out_per_group = weight.shape[0] // groups
    convolve = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[weight.ndim]
    positions = 0
    for position in np.ndindex(*weight.shape[1:]):
        pick = torch.zeros(groups, *weight.shape[1:], dtype=torch.float64)
        pick[(slice(None), *position)] = 1
        patches = convolve(x, pick, None, module.stride, module.padding, module.dilation, groups)
        positions = patches.numel() // groups
        per_channel = patches.square().transpose(0, 1).flatten(1).sum(1)  # (groups,)
        sums.add(weight, per_channel.repeat_interleave(out_per_group), (slice(None), *position))
    assert per_group
    sums.add(module.bias, float(positions))


def _experts(sums: Sums, module: Any, args: tuple[Tensor, ...]) -> None:
    """Stacked experts: those of Mixtral and Qwen are (E, out, in), those of GPT-OSS (E, in, out) with biases."""
    hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
    gpt_oss = type(module).__name__ == "GptOssExperts"
    for expert in range(module.num_experts):
        x = hidden[(chosen == expert).any(-1)]
        gate_up = module.gate_up_proj[expert]
        if gpt_oss:
            out = x @ gate_up + module.gate_up_proj_bias[expert]
            gate, up = out[:, ::2].clamp(max=module.limit), out[:, 1::2].clamp(-module.limit, module.limit)
            inner = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
            sums.add(module.gate_up_proj, x.double().square().sum(0).unsqueeze(1), expert)
            sums.add(module.down_proj, inner.double().square().sum(0).unsqueeze(1), expert)
            sums.add(module.gate_up_proj_bias, float(len(x)), expert)
            sums.add(module.down_proj_bias, float(len(x)), expert)
        else:
            gate, up = (x @ gate_up.T).chunk(2, -1)
            inner = module.act_fn(gate) * up
            sums.add(module.gate_up_proj, x.double().square().sum(0), expert)
            sums.add(module.down_proj, inner.double().square().sum(0), expert)


def _router(sums: Sums, module: Any, args: tuple[Tensor, ...]) -> None:
    x = args[0].double().reshape(-1, args[0].shape[-1])
    sums.add(module.weight, x.square().sum(0))
    sums.add(getattr(module, "bias", None), float(len(x)))


def hook_all(model: nn.Module, sums: Sums) -> None:
    """Hook every module whose parameters are linear in it."""
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            rule: Any = _linear
        elif isinstance(module, Conv1D):
            rule = _conv1d
        elif isinstance(module, nn.Embedding) and not kind.endswith("PositionalEmbedding"):
            rule = _embedding
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            rule = _conv
        elif kind.endswith(("Norm", "RMSNorm", "LayerNorm")) and getattr(module, "weight", None) is not None:
            rule = _norm
        elif kind.endswith("Experts"):
            rule = _experts
        elif kind.endswith("Router"):
            rule = _router
        else:
            continue
        module.register_forward_pre_hook(lambda m, args, rule=rule: rule(sums, m, args))


def brute_force(model: Any, inputs: Iterable[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Return dense Σx² of every hooked parameter, each sample run alone and unpadded."""
    sums = Sums(model)
    hook_all(model, sums)
    with torch.no_grad():
        for sample in inputs:
            model(**sample)
    return {name: value.numpy() for name, value in sums.sums.items()}


def by_values(model: nn.Module, sums: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Return the sums keyed by the names in the checkpoint; NaN for elements of parameters that have none."""
    from safetensors.numpy import load_file

    values, found = [], []
    for name, parameter in model.named_parameters():
        dense = sums.get(name, np.full(parameter.shape, np.nan))
        values.append(parameter.detach().float().numpy().reshape(-1))
        found.append(dense.reshape(-1))
    all_values, all_sums = np.concatenate(values), np.concatenate(found)
    order = np.argsort(all_values)
    all_values, all_sums = all_values[order], all_sums[order]
    assert len(np.unique(all_values)) == len(all_values)
    result = {}
    for file in sorted(folder.glob("model*.safetensors")):
        for name, tensor in load_file(file).items():
            place = np.searchsorted(all_values, tensor.reshape(-1))
            if (all_values[np.minimum(place, len(all_values) - 1)] != tensor.reshape(-1)).any():
                continue  # a buffer
            result[name] = all_sums[place].reshape(tensor.shape)
    return result
