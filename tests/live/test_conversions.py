"""Moves of statistics back through transformers' conversions, against moves of element numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sculpt.live.conversions import Conversion, _by_element_numbers, collapse, pull_back
from transformers import core_model_loading as loading


def _step(op: Any, before: dict[str, list[tuple[int, ...]]], targets: list[str], **kwargs: Any) -> Conversion:
    tensors = {key: [torch.zeros(shape) for shape in shapes] for key, shapes in before.items()}
    step = Conversion(op, list(before), targets, before, {}, {"full_layer_name": targets[0], "model": None, **kwargs})
    after = {key: [tuple(t.shape) for t in found] for key, found in step.run(tensors).items()}
    return Conversion(op, list(before), targets, before, after, step.kwargs)


class _Config:
    num_attention_heads = 2


STEPS = {
    "experts": lambda: _step(loading.MergeModulelist(dim=0), {"a": [(6, 4)] * 3}, ["t"]),
    "gate and up": lambda: _step(loading.Concatenate(dim=0), {"a": [(6, 4)], "b": [(2, 4)]}, ["t"]),
    "stacks side by side": lambda: _step(loading.Concatenate(dim=1), {"a": [(3, 6, 4)], "b": [(3, 6, 4)]}, ["t"]),
    "fused qkv": lambda: _step(loading.Chunk(dim=0), {"a": [(6, 4)]}, ["q", "k", "v"]),
    "transposed": lambda: _step(loading.Transpose(0, 1), {"a": [(6, 4)]}, ["t"]),
    "interleaved": lambda: _step(loading.Interleave(dim=0), {"a": [(6, 4)]}, ["t"]),
    "rotary": lambda: _step(loading.PermuteForRope(), {"a": [(8, 4)]}, ["t"], config=_Config()),
    "flattened": lambda: _step(loading.Conv3dToLinear(3, (2, 2, 2)), {"a": [(6, 3, 2, 2, 2)]}, ["t"]),
}


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_moving_back_is_the_inverse_of_moving_elements(name: str, uniform: bool) -> None:
    """Against element numbers moved through transformers' own operation, for column sums and for dense ones."""
    step = STEPS[name]()
    generator = np.random.default_rng(0)
    values = {}
    for target, shapes in step.after.items():
        for shape in shapes:
            own = (*shape[:-2], 1, shape[-1]) if uniform else shape
            shared = generator.random(own) if target != "k" or not uniform else values["q"][0][0]
            values[target] = [(shared,)]
    fast, slow = pull_back([step], values), _by_element_numbers(step, values)
    for pattern, shapes in step.before.items():
        for shape, one, other in zip(shapes, fast[pattern], slow[pattern], strict=True):
            np.testing.assert_array_equal(np.broadcast_to(one[0], shape), np.broadcast_to(other[0], shape))


def test_constant_axes_collapse() -> None:
    array = np.broadcast_to(np.arange(4.0), (3, 4))
    assert collapse(array).shape == (1, 4)
    assert collapse(np.arange(12.0).reshape(3, 4)).shape == (3, 4)
