"""Masks keep an exact number of entries, hold, and come back."""

from __future__ import annotations

import pytest
import torch
from sculpt.fusion.errors import MethodError, ModelError
from sculpt.fusion.lora.density import count_of_product, density_bound, expected_density
from sculpt.training import ConflictTerm, Masking, Sculptor

from . import tiny


def factors(model):
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def test_the_largest_are_kept_exactly_and_stay():
    model = tiny.adapted(tiny.llama())
    before = {name: p.detach().clone() for name, p in factors(model).items()}
    sculptor = Sculptor(model, Masking(density=(0.25, 0.1), warmup_steps=2))
    sculptor.after_step(1)
    assert not sculptor.masked
    assert all(torch.equal(p, before[name]) for name, p in factors(model).items())
    sculptor.after_step(2)
    patterns = {}
    for name, parameter in factors(model).items():
        count = int((0.25 if "lora_A" in name else 0.1) * parameter.numel())
        threshold = before[name].abs().flatten().sort(descending=True).values[count - 1]
        patterns[name] = before[name].abs() >= threshold
        assert int((parameter != 0).sum()) == count
        assert torch.equal(parameter, torch.where(patterns[name], before[name], 0))
    with torch.no_grad():
        for parameter in factors(model).values():
            parameter += 1
    sculptor.after_step(3)
    assert all(torch.equal(p != 0, patterns[name]) for name, p in factors(model).items())


def test_of_equal_entries_the_first_are_kept(caplog):
    model = tiny.adapted(tiny.llama(), target_modules=["q_proj"])
    with torch.no_grad():
        for name, parameter in factors(model).items():
            parameter.fill_(1.0 if "lora_A" in name or ".0." in name else 0.0)
    sculptor = Sculptor(model, Masking(density=0.1, warmup_steps=1))
    sculptor.after_step(1)
    for name, parameter in factors(model).items():
        if "lora_A" in name:
            assert parameter.flatten().nonzero().flatten().tolist() == list(range(12))
    assert "were still zero after the warm-up" in caplog.text


def test_nothing_is_chosen_of_an_adapter_that_has_not_moved():
    model = tiny.adapted(tiny.llama(), target_modules=["q_proj"])
    with torch.no_grad():
        for name, parameter in factors(model).items():
            parameter.mul_("lora_A" in name)
    sculptor = Sculptor(model, Masking(density=0.1, warmup_steps=1))
    with pytest.raises(MethodError, match="every B is still zero after the warm-up of 1 steps"):
        sculptor.after_step(1)
    assert not sculptor.masked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors(dtype):
    model = tiny.adapted(tiny.llama()).to(dtype)
    Sculptor(model, Masking(density=0.1, warmup_steps=1)).after_step(1)
    for parameter in factors(model).values():
        assert parameter.dtype == dtype
        assert int((parameter != 0).sum()) == int(0.1 * parameter.numel())


def test_the_connector_has_no_mask():
    model = tiny.adapted(tiny.llama())
    Sculptor(model, Masking(density=0.1, warmup_steps=1, connector=("*.up_proj",))).after_step(1)
    for name, parameter in factors(model).items():
        assert bool((parameter != 0).all()) == ("up_proj" in name)


def test_masks_come_back_as_text():
    model = tiny.adapted(tiny.llama())
    first = Sculptor(model, Masking(warmup_steps=1))
    assert first.state_dict() == {}
    first.after_step(1)
    state = first.state_dict()
    again = tiny.adapted(tiny.llama())
    second = Sculptor(again, Masking(warmup_steps=1))
    second.load_state_dict(state)
    second.apply()
    assert all(torch.equal(p, q) for p, q in zip(factors(model).values(), factors(again).values(), strict=True))
    assert second.density() == first.density() < 0.2
    key = next(iter(state))
    with pytest.raises(ModelError, match=f"mask of `{key}` is damaged"):
        second.load_state_dict({**state, key: "?!"})
    with pytest.raises(ModelError, match="of another model"):
        second.load_state_dict({key: state[key]})


def test_what_makes_no_sense_is_refused():
    for options, words in (
        ({"density": 0}, "leaves nothing"),
        ({"density": 10}, "did you mean 0.1"),
        ({"density": (0.1, 0.2, 0.3)}, "two for A and B"),
        ({"warmup_steps": 0}, "at least 1 step"),
    ):
        with pytest.raises(MethodError) as caught:
            Masking(**options)
        assert words in f"{caught.value.message} {caught.value.hint}"
    model = tiny.adapted(tiny.llama())
    with pytest.raises(MethodError, match="keeps none of the 128 entries"):
        Sculptor(model, Masking(density=0.001, warmup_steps=1)).after_step(1)
    with torch.no_grad():
        next(iter(factors(model).values()))[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite after the warm-up"):
        Sculptor(model, Masking(warmup_steps=1)).after_step(1)


@pytest.mark.parametrize(("rank", "s_a", "s_b"), [(4, 0.1, 0.1), (16, 0.1, 0.1), (32, 0.05, 0.2)])
def test_densities_follow_theorem_3_1_within_the_bound_of_3_2(rank, s_a, s_b):
    p, q = 200, 150
    generator = torch.Generator().manual_seed(rank)
    expected, bound = expected_density(s_a, s_b, rank), density_bound(rank, p, q, 0.05)
    found = []
    for _ in range(16):
        b = (torch.rand(p, rank, generator=generator) < s_b).float()
        a = (torch.rand(rank, q, generator=generator) < s_a).float()
        count = count_of_product(b, a)
        assert count == int(((b @ a) != 0).sum()) == count_of_product(b.numpy(), a.numpy())
        found.append(count / (p * q))
    mean = sum(found) / len(found)
    assert mean == pytest.approx(expected, rel=0.08)
    assert sum(abs(one - expected) > bound for one in found) <= 2


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own deprecations
def test_a_model_in_shards_is_sculpted_like_a_whole_one(process_group):
    """FSDP 2; two processes gave the same, to the bit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    models = [tiny.adapted(tiny.llama()) for _ in range(2)]
    fully_shard(models[0], mesh=init_device_mesh("cpu", (1,)))
    ids = torch.arange(5, 21).reshape(2, 8)
    sculptors = []
    for model in models:
        term, sculptor = ConflictTerm(alpha=0.5), Sculptor(model, Masking(density=0.2, warmup_steps=1))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in (1, 2):
            (model(input_ids=ids, labels=ids).loss + sum(term(model).values())).backward()
            optimizer.step()
            optimizer.zero_grad()
            sculptor.after_step(step)
        sculptors.append(sculptor)
    for (name, sharded), whole in zip(factors(models[0]).items(), factors(models[1]).values(), strict=True):
        assert torch.equal(sharded.full_tensor(), whole), name
    assert sculptors[0].state_dict() == sculptors[1].state_dict()
    sculptors[0].load_state_dict(sculptors[1].state_dict())
    sculptors[0].apply()
    assert sculptors[0].density() == sculptors[1].density()
