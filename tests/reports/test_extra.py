"""Tensors that one of several models has and another has not: what people of other projects met, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from sculpt.fusion.errors import MismatchError
from sculpt.fusion.methods import METHODS
from sculpt.fusion.record.manifest import Manifest

Tensors = dict[str, np.ndarray]
Make = Callable[..., Path]
SHAPES = {"model.layers.0.q_proj.weight": (6, 4), "model.norm.weight": (4,), "lm_head.weight": (9, 4)}


def small(seed: int, **more: tuple[int, ...]) -> Tensors:
    """Return a model's tensors; a `__` in a name is a point."""
    rng = np.random.default_rng(seed)
    shapes = {**SHAPES, **{name.replace("__", "."): shape for name, shape in more.items()}}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def fuse(make_checkpoint: Make, tmp_path: Path, tensors_of: Callable[[Path], Tensors]) -> Callable[..., Any]:
    """Return what fuses models that are given as tensors, the base first; a manifest and the output's tensors."""

    def run(method: sculpt.Method, models: Mapping[str, Tensors], **policies: str) -> tuple[Manifest, Tensors]:
        paths = [make_checkpoint(name, tensors, config={"name": name}) for name, tensors in models.items()]
        settings = sculpt.Settings(policies=sculpt.Policies(**policies))  # pyright: ignore[reportArgumentType]
        manifest = sculpt.fuse(paths[0], paths[1:], output=tmp_path / "out", method=method, settings=settings,
                               calibration=False)  # fmt: skip
        return manifest, tensors_of(tmp_path / "out")

    return run


def with_tower(seed: int) -> Tensors:
    """Return a model with a vision tower, under the prefix that its language model has there."""
    found = small(seed, visual__blocks__0__weight=(3, 3), visual__blocks__1__weight=(3, 3), visual__merger__weight=(3,))
    return {name.replace("model.", "model.language_model."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("name", ["task-arithmetic", "ties", "dare", "linear", "karcher", "model-stock"])
def test_a_languages_models_delta_is_grafted_into_a_vision_language_model(name: str, fuse: Callable[..., Any]) -> None:
    """mergekit#576, #434: vlm + (math − llm); an IndexError in every method."""
    llm, vlm, math = small(0), with_tower(1), small(2)
    _, found = fuse(METHODS[name](), {"llm": llm, "vlm": vlm, "math": math}, on_extra="take-tuned")
    assert found.keys() == vlm.keys()
    for own, tensor in vlm.items():
        if own.startswith("visual."):
            np.testing.assert_array_equal(found[own], tensor)
        elif name == "task-arithmetic":
            theirs = own.replace("language_model.", "")
            np.testing.assert_allclose(found[own], tensor + (math[theirs] - llm[theirs]), rtol=1e-4, atol=1e-6)


def test_the_model_with_a_place_for_extra_tensors_is_to_be_named_first(fuse: Callable[..., Any]) -> None:
    """mergekit#576: with the vision–language model second, its tower was dropped in thirty notes."""
    models = {"llm": small(0), "math": small(2), "vlm": with_tower(1)}
    with pytest.raises(MismatchError, match=r"`visual.blocks.0.weight` is in .*vlm` and missing in the base") as caught:
        fuse(sculpt.TaskArithmetic(), models)
    assert "named first of the tuned models" in (caught.value.hint or "")
    assert [way.value for way in caught.value.ways] == ["drop"]


def test_taking_extra_tensors_that_the_first_model_lacks_is_refused(fuse: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"and the output has the configuration of .*math") as caught:
        fuse(
            sculpt.TaskArithmetic(),
            {"llm": small(0), "math": small(2), "vlm": with_tower(1)},
            on_extra="take-tuned",
        )
    assert caught.value.hint == f"name `{tmp_path / 'vlm'}` first of the tuned models"


def test_what_is_left_out_is_one_note_a_model(fuse: Callable[..., Any], tmp_path: Path) -> None:
    models = {"llm": small(0), "math": small(2), "vlm": with_tower(1)}
    manifest, found = fuse(sculpt.TaskArithmetic(), models, on_extra="drop")
    assert found.keys() == SHAPES.keys()
    assert manifest.notes == ("`visual.blocks.*.weight` (2), `visual.merger.weight` of `vlm` are left out",)


def without(tensors: Tensors, name: str) -> Tensors:
    return {own: tensor for own, tensor in tensors.items() if own != name}


def test_a_tensor_that_one_model_lacks_is_merged_from_the_others(fuse: Callable[..., Any]) -> None:
    """The policy speaks of the model that lacks it: the other models' deltas were dropped with it."""
    base, a, b, c = (small(seed) for seed in range(4))
    models = {"base": base, "a": a, "b": without(b, "model.norm.weight"), "c": c}
    manifest, found = fuse(sculpt.TaskArithmetic(weights=(0.5, 0.3, 0.2)), models, on_missing="keep-base")
    name = "model.norm.weight"
    expected = base[name] + 0.5 * (a[name] - base[name]) + 0.2 * (c[name] - base[name])
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    record = next(record for record in manifest.tensors if record.name == name)
    assert record.why.startswith("selected; missing in ")
    assert record.why.endswith("b")
    assert record.options is not None
    assert tuple(record.options["weights"]) == (0.5, 0.2)
    assert tuple(manifest.options["weights"]) == (0.5, 0.3, 0.2)


@pytest.mark.parametrize("policy", ["keep-base", "take-tuned"])
def test_a_tensor_of_another_shape_in_one_model_is_that_models_matter(policy: str, fuse: Callable[..., Any]) -> None:
    """`take-tuned` copied the first model's tensor and said that the second's shape differs."""
    base, a, b = (small(seed) for seed in range(3))
    b["lm_head.weight"] = b["lm_head.weight"][:5]
    _, found = fuse(sculpt.TaskArithmetic(weights=(0.5, 0.5)), {"base": base, "a": a, "b": b}, on_mismatch=policy)
    half = base["lm_head.weight"] + 0.5 * (a["lm_head.weight"] - base["lm_head.weight"])
    expected = half if policy == "keep-base" else b["lm_head.weight"]
    np.testing.assert_allclose(found["lm_head.weight"], expected, rtol=1e-5, atol=1e-6)


def test_too_few_models_for_a_method_leave_the_bases_tensor(fuse: Callable[..., Any]) -> None:
    models = {"base": small(0), "a": small(1), "b": without(small(2), "model.norm.weight")}
    _, found = fuse(sculpt.ModelStock(), models, on_missing="keep-base")
    np.testing.assert_array_equal(found["model.norm.weight"], models["base"]["model.norm.weight"])


def test_the_head_that_a_reward_model_has_no_place_for_is_left_out(fuse: Callable[..., Any]) -> None:
    """trl#368, ms-swift#4957: a reward model over a causal one kept lm_head beside its score."""
    reward = {**without(small(1), "lm_head.weight"), "score.weight": np.ones((1, 4), np.float32)}
    models = {"base": small(0), "reward": reward}
    manifest, found = fuse(sculpt.TaskArithmetic(scale=0.5), models, on_missing="drop", on_extra="take-tuned")
    assert found.keys() == reward.keys()
    assert [note.partition(":")[0] for note in manifest.notes] == ["`lm_head.weight` is left out"]
