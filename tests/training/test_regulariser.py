"""The regulariser is the source's, its gradient is right, and no whole B·A is kept."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from sculpt.fusion.errors import MethodError, ModelError
from sculpt.training import ConflictTerm, L2Term, OrthogonalTerm, conflict, regulariser
from sculpt.training.layers import adapted_layers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import tiny


def naive(weight: Tensor, a: Tensor, b: Tensor, omega: float = 1.0, form: str = "frobenius") -> Tensor:
    """The equations as they stand, through autograd."""
    s = torch.abs(1 / torch.log(weight.abs() / torch.linalg.norm(weight) + 1e-15))
    moved = torch.tanh(omega * s) * (b @ a)
    return torch.linalg.norm(moved) if form == "frobenius" else moved.abs().sum()


GOLDEN = torch.tensor([[0.5, -0.1], [0.0, 0.2]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.1], [-0.3]])


def test_golden_value_of_the_source():
    weight, a, b = GOLDEN
    assert conflict(weight, a, b).item() == pytest.approx(0.477856, abs=1e-6)
    mask = regulariser.importance(weight, torch.linalg.norm(weight), 1.0, torch.float32)
    expected = torch.tensor([[1, 0.528476], [0.028945, 0.758470]])
    torch.testing.assert_close(mask, expected, atol=1e-6, rtol=0)
    assert conflict(weight, a, b, form="l1").item() == pytest.approx(float((mask * (b @ a)).abs().sum()), abs=1e-6)
    with pytest.raises(MethodError, match="`form` must be one of"):
        conflict(weight, a, b, form="l2")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", ["frobenius", "l1"])
@pytest.mark.parametrize("tile", [7, 1 << 20])
def test_the_gradient_is_autograds_in_float64(form, tile, monkeypatch):
    monkeypatch.setattr(regulariser, "TILE_ELEMENTS", tile)
    torch.manual_seed(0)
    weight = torch.randn(11, 6, dtype=torch.float64)
    weight[0, 0] = 0
    a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (11, 3)))
    found = conflict(weight, a, b, omega=0.7, form=form)
    expected = naive(weight, a, b, 0.7, form)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(2.5 * found, (a, b)), torch.autograd.grad(2.5 * expected, (a, b)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_leave_epsilon_alone(dtype):
    torch.manual_seed(0)
    weight = torch.randn(8, 6).to(dtype)
    weight[0] = 0
    a, b = torch.randn(3, 6).to(dtype).requires_grad_(), torch.randn(8, 3).to(dtype).requires_grad_()
    found = conflict(weight, a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, naive(weight.float(), a.float(), b.float()))
    found.backward()
    assert a.grad is not None
    assert a.grad.dtype == dtype
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize(
    "weight", [torch.tensor([[3.0]]), torch.zeros(2, 2), torch.tensor([[1e-30, 0], [0, 0]]), torch.ones(2, 2) * 1e30]
)
def test_odd_weights_give_numbers(weight):
    a, b = torch.ones(1, weight.shape[1], requires_grad=True), torch.ones(len(weight), 1, requires_grad=True)
    found = conflict(weight, a, b)
    found.backward()
    assert a.grad is not None
    assert torch.isfinite(found)
    assert torch.isfinite(a.grad).all()
    if weight.numel() == 1:  # log 1 = 0, S infinite
        assert found == 1


def test_where_training_begins_the_gradient_is_zero_not_nan():
    a, b = torch.randn(2, 4, requires_grad=True), torch.zeros(5, 2, requires_grad=True)
    conflict(torch.randn(5, 4), a, b).backward()
    assert b.grad is not None
    assert not b.grad.any()


def test_autocast_does_not_touch_it():
    weight, a, b = GOLDEN
    with torch.autocast("cpu", torch.bfloat16):
        assert conflict(weight, a, b).item() == pytest.approx(0.477856, abs=1e-6)


class Alive(TorchDispatchMode):
    """Counts how many tensors of a size are alive at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0
        self.known: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.numel() >= self.size:
            self.known = [one for one in (*self.known, weakref.ref(found)) if one() is not None]
            alive = [tensor for one in self.known if (tensor := one()) is not None]
            self.most = max(self.most, len({tensor.data_ptr() for tensor in alive}))
        return found


def test_memory_does_not_grow_with_the_number_of_modules():
    def most(layers: int) -> tuple[int, int]:
        model = tiny.adapted(tiny.llama(num_hidden_layers=layers), target_modules=["q_proj"], r=2)
        term, kept = ConflictTerm(), []
        term(model)
        with (
            Alive(32 * 32) as alive,
            torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x),
        ):
            sum(term(model).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        return alive.most, max(kept)

    few, many = most(1), most(6)
    assert many[0] == few[0] <= 3  # W itself, M and B·A
    assert many[1] == 2 * 32  # what the backward keeps is no larger than a factor


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_the_layers_together_and_the_connector_apart(over):
    model = tiny.adapted(tiny.llama())
    layers = {layer.name: layer for layer in adapted_layers(model)}
    term = ConflictTerm(alpha=0.5, beta=0.25, omega=2.0, layers=over, connector=("*.up_proj",))
    parts = term(model)

    def mean(ending: tuple[str, ...], form: str) -> Tensor:
        chosen = [layer for name, layer in layers.items() if name.endswith(ending)]
        norms = torch.stack([naive(layer.weight(), layer.a, layer.b, 2.0, form) for layer in chosen])
        return norms.sum() if over == "sum" else norms.mean()

    torch.testing.assert_close(parts["cmr"], 0.5 * mean(("q_proj", "v_proj"), "frobenius"))
    torch.testing.assert_close(parts["connector"], 0.25 * mean(("up_proj",), "l1"))
    assert set(ConflictTerm(alpha=0, connector=("*.up_proj",))(model)) == {"connector"}


def test_terms_that_have_nothing_to_do_are_refused():
    model = tiny.adapted(tiny.llama(), target_modules=["up_proj"])
    with pytest.raises(MethodError, match="none of the adapted modules is one of q, k and v"):
        ConflictTerm()(model)
    assert set(ConflictTerm(modules=("up_proj",))(model)) == {"cmr"}
    with pytest.raises(MethodError, match="matches the connector"):
        ConflictTerm(modules=("up_proj",), connector=("nothing",))(model)
    with pytest.raises(ModelError, match="no trainable LoRA"):
        ConflictTerm()(tiny.llama())
    with pytest.raises(MethodError, match="omega of 0"):
        ConflictTerm(omega=0)
    with pytest.raises(MethodError, match="`alpha` must be"):
        ConflictTerm(alpha=-1)


@torch.no_grad()
def test_l2_is_the_distance_moved_and_orth_the_overlap():
    model = tiny.adapted(tiny.llama())
    moved = overlap = 0.0
    for layer in adapted_layers(model):
        weight = layer.weight()
        moved += float(torch.linalg.norm(2.0 * layer.b @ layer.a) ** 2)
        overlap += float(torch.linalg.norm(weight @ layer.a.T / torch.linalg.norm(weight)) ** 2)
    assert float(L2Term(0.5)(model)["l2"]) == pytest.approx(0.5 * moved, rel=1e-5)
    assert float(OrthogonalTerm(0.5)(model)["orth"]) == pytest.approx(0.5 * overlap, rel=1e-5)


def test_weights_stored_the_other_way_round():
    import transformers

    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    model = tiny.adapted(gpt2, target_modules=["c_attn"], fan_in_fan_out=True)
    (layer,) = adapted_layers(model)
    weight = gpt2.transformer.h[0].attn.c_attn.weight
    expected = 1e-3 * naive(weight.detach().T, layer.a, layer.b)
    torch.testing.assert_close(ConflictTerm()(model)["cmr"], expected)
