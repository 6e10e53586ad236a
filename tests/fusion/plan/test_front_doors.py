"""One request through every front door: the command, our recipe, mergekit's YAML and slices decide alike."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import yaml
from sculpt.api import prepare_fuse
from sculpt.cli.console import print_error
from sculpt.fusion.dtypes import DTYPES
from sculpt.fusion.errors import CheckpointError, MethodError, MismatchError, SculptError
from sculpt.fusion.methods import Ties
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.record.files import file_digest
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import Prepared
from sculpt.fusion.run.settings import Settings

Make = Callable[..., Path]
Read = Callable[[Path], dict[str, np.ndarray]]
Tensors = dict[str, np.ndarray]
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 11, "tie_word_embeddings": False}
TIED = {**CONFIG, "tie_word_embeddings": True}


def tensors(seed: int, dtype: type = np.float32, rows: int = 11) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, 8)}
    for i in range(2):
        shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (12, 8), f"model.layers.{i}.input_layernorm.weight": (8,)}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (rows, 8)}
    found: Tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return found | {"model.layers.0.steps": np.array([seed])}


def by_command(folder: Path, settings: Settings, models: list[str]) -> Prepared:
    return prepare_fuse(
        folder / "base",
        [folder / m for m in models],
        output=folder / "out",
        method=Ties(density=0.5),
        settings=settings,
    )


def from_file(folder: Path, content: Mapping[str, Any], settings: Settings) -> Prepared:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(dict(content)))
    return prepare_recipe(read_recipe(str(file)), output=folder / "out", near=folder, settings=settings)


def by_recipe(folder: Path, settings: Settings, models: list[str]) -> Prepared:
    own = {"method": "ties", "base": "base", "models": models, "options": {"density": 0.5}}
    return from_file(folder, own, settings)


MERGEKIT = {
    "merge_method": "ties",
    "base_model": "base",
    "parameters": {"density": 0.5, "weight": 1.0, "normalize": True},
}


def by_mergekit(folder: Path, settings: Settings, models: list[str]) -> Prepared:
    return from_file(folder, {**MERGEKIT, "models": [{"model": m} for m in models]}, settings)


def by_slices(folder: Path, settings: Settings, models: list[str]) -> Prepared:
    sources = [{"model": m, "layer_range": [0, 2]} for m in ("base", *models)]
    return from_file(folder, {**MERGEKIT, "slices": [{"sources": sources}]}, settings)


DOORS = {"command": by_command, "recipe": by_recipe, "mergekit": by_mergekit, "slices": by_slices}


def settings_for(**chosen: Any) -> Settings:
    return Settings(config_from=chosen.pop("config_from", "base"), **chosen)


def plan_of(prepared: Prepared) -> dict[str, tuple[Any, ...]]:
    return {
        s.name: (s.action, s.why, s.dtype, s.shape, s.source, s.num_fused, s.key, s.curvatures, s.method)
        for s in prepared.plan.steps
    }


def add(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda found: found | {name: np.ones(shape, np.float32)}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {key: tensor for key, tensor in found.items() if key != name}


def half(found: Tensors) -> Tensors:
    return {k: t.astype(np.float16) if t.dtype == np.float32 else t for k, t in found.items()}


def renamed(found: Tensors) -> Tensors:
    return {f"language_model.{name}": tensor for name, tensor in found.items()}


def cut(found: Tensors) -> Tensors:
    return found | {"model.norm.weight": np.ones(4, np.float32)}


Policies, Selection = sculpt.Policies, sculpt.Selection
EXTRA, LAYER_EXTRA = add("extra.head.weight", 3), add("model.layers.1.extra.weight", 3)
# What the first tuned model has otherwise than the base, and settings.
AGREE: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "alike": (dict, {}),
    "selection": (dict, {"selection": Selection(include=("model.*",), exclude=("*norm*", "*none*"), rest="tuned")}),
    "dtype converted": (half, {"policies": Policies(on_dtype="convert")}),
    "cast": (dict, {"dtype": "bfloat16"}),
    "extra dropped": (EXTRA, {"policies": Policies(on_extra="drop")}),
    "extra taken": (EXTRA, {"policies": Policies(on_extra="take-tuned")}),
    "extra of a layer taken": (LAYER_EXTRA, {"policies": Policies(on_extra="take-tuned")}),
    "missing kept": (without("model.layers.1.mlp.up_proj.weight"), {"policies": Policies(on_missing="keep-base")}),
    "missing kept outside": (without("model.norm.weight"), {"policies": Policies(on_missing="keep-base")}),
    "shape taken": (cut, {"policies": Policies(on_mismatch="take-tuned")}),
    "shape kept": (cut, {"policies": Policies(on_mismatch="keep-base")}),
    "renamed": (renamed, {}),
    "names of the tuned": (dict, {"config_from": "tuned"}),
}
REFUSED: dict[str, Callable[[Tensors], Tensors]] = {
    "dtype": lambda found: found | {"model.norm.weight": found["model.norm.weight"].astype(np.int32)},
    "extra": EXTRA,
    "extra of a layer": LAYER_EXTRA,
    "missing": without("model.layers.0.mlp.up_proj.weight"),
    "missing outside": without("lm_head.weight"),
    "shape": cut,
}


@pytest.mark.parametrize("models", [["a"], ["a", "b"]], ids=["one", "two"])
@pytest.mark.parametrize("case", AGREE)
def test_every_door_plans_and_records_alike(
    case: str, models: list[str], make_checkpoint: Make, tmp_path: Path
) -> None:
    change, chosen = AGREE[case]
    make_checkpoint("base", tensors(0), config=CONFIG)
    make_checkpoint("a", change(tensors(1)), config=CONFIG)
    make_checkpoint("b", tensors(2), config=CONFIG)
    settings = settings_for(**chosen)
    prepared = {door: prepare(tmp_path, settings, models) for door, prepare in DOORS.items()}
    expected = plan_of(prepared["command"])
    assert {"fuse", "copy"} <= {step[0] for step in expected.values()}
    for door, found in prepared.items():
        assert plan_of(found) == expected, door
        assert found.method == prepared["command"].method, door
        assert found.options == prepared["command"].options, door
        assert sorted(found.plan.notes) == sorted(prepared["command"].plan.notes), door
        assert {(r.base_prefix, r.tuned_prefix) for r in found.plan.renamings} == {
            (r.base_prefix, r.tuned_prefix) for r in prepared["command"].plan.renamings
        }, door
    records = {}
    for door, found in prepared.items():
        manifest = execute(found, overwrite=True)
        records[door] = {record.name: record.as_json() for record in manifest.tensors}
        assert records[door] == records["command"], door


@pytest.mark.parametrize("side", ["base", "a"])
@pytest.mark.parametrize("config_from", ["base", "tuned"])
def test_every_door_follows_ties(side: str, config_from: str, make_checkpoint: Make, tmp_path: Path) -> None:
    """One side ties its head, the other stores one."""
    for name, seed in (("base", 0), ("a", 1)):
        tied = name == side
        found = without("lm_head.weight")(tensors(seed)) if tied else tensors(seed)
        make_checkpoint(name, found, config=TIED if tied else CONFIG)
    plans = {
        door: plan_of(prepare(tmp_path, settings_for(config_from=config_from), ["a"]))
        for door, prepare in DOORS.items()
    }
    for door, plan in plans.items():
        assert plan == plans["command"], door
    assert ("lm_head.weight" in plans["command"]) == ((side == "base") == (config_from == "tuned"))


def test_every_door_fuses_a_grown_vocabulary(make_checkpoint: Make, tmp_path: Path) -> None:
    make_checkpoint("base", tensors(0), config=CONFIG)
    make_checkpoint("a", tensors(1, rows=13), config={**CONFIG, "vocab_size": 13})
    for prepare in DOORS.values():
        with pytest.raises(MismatchError, match=r"is \[11, 8\] in the base and \[13, 8\] in"):
            prepare(tmp_path, settings_for(), ["a"])  # the output has the base's vocabulary
    kept = settings_for(policies=Policies(on_mismatch="keep-base"))
    plans = {door: plan_of(prepare(tmp_path, kept, ["a"])) for door, prepare in DOORS.items()}
    assert plans["command"]["lm_head.weight"][1] == "11 common rows; 2 more of the tuned model left out"
    for door, plan in plans.items():
        assert plan == plans["command"], door


@pytest.mark.parametrize("case", REFUSED)
def test_every_door_refuses_with_the_same_sentence(case: str, make_checkpoint: Make, tmp_path: Path) -> None:
    make_checkpoint("base", tensors(0), config=CONFIG)
    make_checkpoint("a", REFUSED[case](tensors(1)), config=CONFIG)
    told = set()
    for prepare in DOORS.values():
        with pytest.raises(MismatchError) as caught:
            prepare(tmp_path, settings_for(), ["a"])
        told.add((caught.value.name, caught.value.message, caught.value.ways))
    assert len(told) == 1, told


ALONE = {
    "method": "passthrough",
    "models": ["base"],
    "options": {"scale": 0.5},
    "exclude": ["*norm*"],
    "rules": [{"match": ["lm_head.*"], "keep": "base"}],
}


def test_one_model_is_scaled_where_the_recipe_selects(make_checkpoint: Make, tensors_of: Read, tmp_path: Path) -> None:
    base = tensors(0)
    make_checkpoint("base", base, config=CONFIG)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(ALONE))  # no `config_from`: with nothing tuned it is the base
    manifest = execute(prepare_recipe(read_recipe(str(file)), output=tmp_path / "out", near=tmp_path))
    out = tensors_of(tmp_path / "out")
    for name, tensor in base.items():
        kept = "norm" in name or name == "lm_head.weight" or tensor.dtype != np.float32
        np.testing.assert_array_equal(out[name], tensor if kept else tensor / 2, err_msg=name)
    why = {record.name: record.why for record in manifest.tensors}
    assert (why["model.norm.weight"], why["lm_head.weight"]) == ("not selected", "kept by a rule")
    assert (tmp_path / "out" / "config.json").is_file()


def test_one_model_of_which_nothing_is_selected_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    make_checkpoint("base", tensors(0), config=CONFIG)
    with pytest.raises(MethodError, match="no tensor is selected"):
        from_file(tmp_path, {**ALONE, "include": ["nothing"]}, settings_for(selection=Selection(include=("nothing",))))


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize(("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F8_E4M3", 8)])
def test_quantised_tensors_of_one_model_are_copied_byte_for_byte(
    dtype: str, bits: int, slices: bool, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    size = 44 * 6 * bits // 8
    content = np.random.default_rng(0).integers(0, 256, 2 * size, np.uint8).tobytes()
    entries = {
        f"model.layers.{i}.w": {"dtype": dtype, "shape": [44, 6], "data_offsets": [size * i, size * (i + 1)]}
        for i in range(2)
    }
    text = json.dumps(entries).encode()
    (tmp_path / "base" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    recipe: dict[str, Any] = {"merge_method": "passthrough"}
    if slices:
        recipe["slices"] = [{"sources": [{"model": "base", "layer_range": [0, 2]}]}]
    else:
        recipe["models"] = [{"model": "base"}]
    manifest = execute(from_file(tmp_path, recipe, settings_for(tile_elements=16)))
    assert [record.why for record in manifest.tensors] == [f"{DTYPES[dtype].torch} is not fused"] * 2
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", written[:8])[0]
    assert written[start:] == content
    assert manifest.inputs[0].files[0].digest == file_digest(tmp_path / "base" / "model.safetensors", "xxh3-128")


def test_quantised_tensors_of_several_models_are_refused_by_name(tmp_path: Path) -> None:
    text = json.dumps({"model.w": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}).encode()
    for name in ("base", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    for prepare in (by_command, by_recipe, by_mergekit):
        with pytest.raises(CheckpointError, match=r"`model\.w` in .* is float4_e2m1fn_x2, which sculpt cannot fuse"):
            prepare(tmp_path, settings_for(), ["a"])


def test_the_record_of_a_gradient_is_what_the_recipe_says(make_checkpoint: Make, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        make_checkpoint(name, tensors(seed), config=CONFIG)
    models = [{"model": "a", "weights": {"gradient": [0.2, 0.8]}}, {"model": "b", "weights": 1}]
    rules = [{"match": ["*.mlp.*"], "options": {"density": 0.9}}]
    content = {"method": "ties", "base": "base", "models": models, "options": {"density": 0.5}, "rules": rules}
    manifest = execute(from_file(tmp_path, content, settings_for()))
    assert manifest.options["weights"] == [{"gradient": [0.2, 0.8]}, 1.0]
    assert manifest.options["density"] == [{"match": ["*.mlp.*"], "value": 0.9}, {"match": "*", "value": 0.5}]
    assert manifest.options["scale"] == 1.0
    options = {record.name: record.options for record in manifest.tensors}
    assert options["model.layers.1.mlp.up_proj.weight"]["weights"] == (0.8, 1.0)  # pyright: ignore[reportOptionalSubscript]
    assert "gradient" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (False, "`--on-extra take-tuned` copies"),
        (True, "`--on-extra take-tuned` (in sculpt's own YAML `policies: {on_extra: take-tuned}`)"),
    ],
)
def test_the_command_line_names_what_its_user_can_write(
    recipe: bool, told: str, make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint("base", tensors(0), config=CONFIG)
    make_checkpoint("a", EXTRA(tensors(1)), config=CONFIG)
    with pytest.raises(SculptError) as caught:
        by_command(tmp_path, settings_for(), ["a"])
    assert "--" not in caught.value.message
    assert caught.value.hint is None
    print_error(caught.value, recipe=recipe)
    assert told in capsys.readouterr().err
