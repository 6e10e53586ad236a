"""`sculpt.apply`: what a fuse of checkpoints with the same tensors writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import sculpt
import torch
from safetensors.numpy import save_file
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.errors import MethodError, MismatchError
from sculpt.fusion.methods import RegMean

State = dict[str, np.ndarray]


@pytest.fixture(name="states")
def _states() -> list[State]:
    """Return a base and two fine-tunes, with a matrix, a vector and a counter."""
    rng = np.random.default_rng(0)

    def state(change: float) -> State:
        own = np.random.default_rng(int(change * 100))
        drawn = {"layer.weight": (5, 8), "norm.weight": (8,)}
        return {
            **{name: before[name] + change * own.standard_normal(shape).astype("f4") for name, shape in drawn.items()},
            "steps": np.array(7, np.int64),
        }

    before = {
        "layer.weight": rng.standard_normal((5, 8)).astype("f4"),
        "norm.weight": rng.standard_normal(8).astype("f4"),
    }
    return [state(0.0), state(0.1), state(0.2)]


def known(seed: int) -> dict[str, Curvature]:
    x = np.random.default_rng(seed).standard_normal((40, 8))
    return {"layer.weight": Curvature(terms=((x * x).sum(0)[None],), num_tokens=40, gram=x.T @ x)}


def test_it_gives_what_a_fuse_of_files_writes(states: list[State], tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    for method, num in [(sculpt.Ties(density=0.5), 2), (sculpt.AdaDare(gamma=0.7, sparsity=0.5), 1)]:
        settings = sculpt.Settings(seed=3, selection=sculpt.Selection(exclude=("norm.*",)))
        out = tmp_path / method.name
        sculpt.fuse(paths[0], paths[1 : 1 + num], output=out, method=method, settings=settings, calibration=False)
        written = sculpt.open_checkpoint(out)
        found = sculpt.apply(method, states[0], states[1 : 1 + num], settings=settings)
        assert set(found) == set(written.tensors)
        for name, tensor in found.items():
            assert tensor.tobytes() == written.read(name).tobytes(), name
            assert tensor.shape == states[0][name].shape


def test_torch_tensors_come_back_as_torch_tensors(states: list[State]) -> None:
    as_torch = [{name: torch.from_numpy(a).clone() for name, a in state.items()} for state in states[:2]]
    for state in as_torch:
        state["layer.weight"] = state["layer.weight"].bfloat16()
    found: dict[str, Any] = sculpt.apply(sculpt.Linear(), as_torch[0], as_torch[1])
    assert found["layer.weight"].dtype == torch.bfloat16
    arrays = [state["layer.weight"].astype(ml_dtypes.bfloat16) for state in states[:2]]
    expected = sculpt.apply(sculpt.Linear(), arrays[0], arrays[1])
    assert found["layer.weight"].view(torch.int16).numpy().tobytes() == expected.tobytes()
    assert found["steps"].dtype == torch.int64
    assert found["steps"] == 7


def test_each_model_has_its_own_curvature(states: list[State]) -> None:
    one, other = known(1), known(2)
    found = sculpt.apply(RegMean(alpha=1), states[0], states[1:], curvature=[one, other])
    a, b = (c["layer.weight"].gram for c in (one, other))
    assert a is not None
    assert b is not None
    expected = (states[1]["layer.weight"] @ a + states[2]["layer.weight"] @ b) @ np.linalg.inv(a + b)
    np.testing.assert_allclose(found["layer.weight"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["norm.weight"], (states[1]["norm.weight"] + states[2]["norm.weight"]) / 2, 1e-5)


def test_the_base_is_protected_from_every_model(states: list[State]) -> None:
    base, one, other = states
    mine, general = known(1), known(3)
    settings = sculpt.Settings(protection=sculpt.Protection(weight=2, ridge=0))
    add = sculpt.TaskArithmetic(scale=1.0)
    found = sculpt.apply(add, base, [one, other], curvature=[mine, known(2)], general=general, settings=settings)
    expected = base["layer.weight"].astype("f8")
    for model, own in ((one, mine), (other, known(2))):
        a, g = (c["layer.weight"].gram / 40 for c in (own, general))  # pyright: ignore[reportOptionalOperand]
        expected = expected + (model["layer.weight"] - base["layer.weight"]) @ a @ np.linalg.inv(a + 2 * g)
    np.testing.assert_allclose(found["layer.weight"], expected, rtol=1e-4, atol=1e-5)


def test_what_disagrees_is_refused(states: list[State]) -> None:
    base, one, _ = states
    with pytest.raises(MismatchError, match="layer"):
        sculpt.apply(sculpt.Linear(), base, {**one, "layer.weight": one["layer.weight"][:4]})
    with pytest.raises(MethodError, match="curvature was given of 1 models, expected one for each of 2"):
        sculpt.apply(RegMean(), base, [one, one], curvature=[known(1)])
    with pytest.raises(MethodError, match="a protection needs statistics"):
        sculpt.apply(sculpt.Linear(), base, one, settings=sculpt.Settings(protection=sculpt.Protection()))
    with pytest.raises(MethodError, match="takes 1 tuned model, got 2") as many:
        sculpt.apply(sculpt.AdaDare(), base, [one, one])
    with pytest.raises(MethodError, match="takes 1 tuned model, got 0") as none:
        sculpt.apply(sculpt.AdaDare(), base, [])
    # A protection puts several together; of none it makes nothing.
    assert [[way.option for way in caught.value.ways] for caught in (many, none)] == [["protect"], []]
