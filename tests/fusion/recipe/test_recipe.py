"""Recipes: what they say is what runs, and what they cannot say is refused with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from sculpt.fusion.errors import CheckpointError, MethodError, RecipeError, SculptError
from sculpt.fusion.methods import Dare, DareTies, Linear, Slerp, TaskArithmetic
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe, read_recipes, shipped_recipes
from sculpt.fusion.recipe.several import in_order
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.fuse import execute

Make = Callable[..., Path]
Read = Callable[[Path], dict[str, np.ndarray]]
Same = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], bool]
NUM_LAYERS = 4


def small(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (11, 8)}
    for i in range(NUM_LAYERS):
        shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (12, 8), f"model.layers.{i}.self_attn.q_proj.weight": (8, 8)}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (11, 8)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def models(make_checkpoint: Make, tmp_path: Path) -> Path:
    """Return a folder with base, a and b; their config lists a type for each layer."""
    config = {"model_type": "llama", "num_hidden_layers": NUM_LAYERS, "vocab_size": 11, "tie_word_embeddings": False}
    for seed, name in enumerate(("base", "a", "b")):
        make_checkpoint(name, small(seed), config={**config, "layer_types": [f"{name}{i}" for i in range(NUM_LAYERS)]})
    return tmp_path


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    file = folder / name
    file.write_text(dedent(text))
    return file


def run(file: Path, output: Path) -> Manifest:
    return execute(prepare_recipe(read_recipe(str(file)), output=output, near=file.parent))


OWN = """
    method: task-arithmetic
    base: base
    models:
      - model: a
        weights: {gradient: [0, 1]}
      - b
    options: {scale: 1.0}
    rules:
      - match: "*.mlp.*"
        options: {scale: 0.5}
      - match: [lm_head.*, model.norm.*]
        keep: tuned
"""


def test_a_recipe_gives_every_tensor_its_own_options(models: Path, tensors_of: Read) -> None:
    manifest = run(write(models, OWN), models / "out")
    base, a, b = (tensors_of(models / name) for name in ("base", "a", "b"))
    found = tensors_of(models / "out")
    for i in range(NUM_LAYERS):
        for name, scale in (
            (f"model.layers.{i}.mlp.up_proj.weight", 0.5),
            (f"model.layers.{i}.self_attn.q_proj.weight", 1),
        ):
            expected = base[name] + scale * (i / 3 * (a[name] - base[name]) + (b[name] - base[name]))
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["lm_head.weight"], a["lm_head.weight"])
    record = next(r for r in manifest.tensors if r.name == "model.layers.3.mlp.up_proj.weight")
    assert record.options == {"scale": 0.5, "weights": (1.0, 1.0), "normalize": False}
    assert manifest.settings["recipe"]["content"]["method"] == "task-arithmetic"


def test_a_recipe_gives_the_bits_of_the_command(
    models: Path, tmp_path: Path, tensors_of: Read, same_bits: Same
) -> None:
    import sculpt

    run(write(models, "method: dare\nbase: base\nmodels: [a]\noptions: {sparsity: 0.6}\nseed: 3\n"), models / "out")
    sculpt.fuse(
        models / "base",
        models / "a",
        output=models / "direct",
        method=Dare(sparsity=0.6),
        settings=sculpt.Settings(seed=3),
    )
    assert same_bits(tensors_of(models / "out"), tensors_of(models / "direct"))


def test_mergekits_filters_and_gradients_choose_by_name_and_layer(models: Path) -> None:
    file = write(
        models,
        """
        merge_method: slerp
        base_model: base
        models: [{model: base}, {model: a}]
        parameters:
          t:
            - filter: self_attn
              value: [0, 1e0, 0.2]
            - value: 0.25
        """,
    )
    prepared = prepare_recipe(read_recipe(str(file)), output=models / "out", near=models)
    found = {step.name: step.method for step in prepared.plan.steps}
    assert found["model.layers.0.mlp.up_proj.weight"] == Slerp(t=0.25)
    assert found["lm_head.weight"] == Slerp(t=0.25)
    values = [found[f"model.layers.{i}.self_attn.q_proj.weight"].t for i in range(NUM_LAYERS)]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    np.testing.assert_allclose(values, [0, 2 / 3, 1 - 0.8 / 3, 0.2])


def test_settings_of_a_model_win_over_those_of_the_recipe(models: Path) -> None:
    file = write(
        models,
        """
        merge_method: dare_ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 0.3}}
          - {model: b}
        parameters: {weight: 0.9, density: 0.4, lambda: 2, normalize: true, int8_mask: true}
        """,
    )
    prepared = prepare_recipe(read_recipe(str(file)), output=models / "out", near=models)
    assert prepared.method == DareTies(sparsity=0.6, weights=(0.3, 0.9), scale=2)


def test_without_a_base_the_first_model_counts_as_the_others(models: Path, tensors_of: Read) -> None:
    file = write(
        models,
        """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: 3}}
          - {model: b, parameters: {weight: 1}}
        """,
    )
    prepared = prepare_recipe(read_recipe(str(file)), output=models / "out", near=models)
    assert prepared.method == Linear(weights=(3, 1))
    execute(prepared)
    a, b = (tensors_of(models / name)["lm_head.weight"] for name in "ab")
    np.testing.assert_allclose(tensors_of(models / "out")["lm_head.weight"], (3 * a + b) / 4, rtol=1e-6)


STACK = """
    merge_method: passthrough
    slices:
      - sources: [{model: a, layer_range: [0, 3]}]
      - sources: [{model: b, layer_range: [1, 4]}]
"""


def test_layers_are_stacked_with_their_configuration(models: Path, tensors_of: Read) -> None:
    run(write(models, STACK), models / "out")
    found, a, b = (tensors_of(models / name) for name in ("out", "a", "b"))
    for layer, (source, number) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(found[name.format(layer)], source[name.format(number)])
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    np.testing.assert_array_equal(found["lm_head.weight"], b["lm_head.weight"])
    config = json.loads((models / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["a0", "a1", "a2", "a1", "a2", "a3"]


def test_a_model_may_be_merged_with_other_layers_of_itself(models: Path, tensors_of: Read) -> None:
    file = write(
        models,
        """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
              - {model: a, layer_range: [2, 4], parameters: {weight: 3}}
        """,
    )
    run(file, models / "out")
    a, name = tensors_of(models / "a"), "model.layers.{}.self_attn.q_proj.weight"
    expected = (a[name.format(1)] + 3 * a[name.format(3)]) / 4
    np.testing.assert_allclose(tensors_of(models / "out")[name.format(1)], expected, rtol=1e-5, atol=1e-6)


def test_recipes_of_one_file_run_in_the_order_in_which_they_use_each_other(models: Path, tensors_of: Read) -> None:
    file = write(
        models,
        """
        merge_method: linear
        models: [{model: half, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
        ---
        name: half
        method: task-arithmetic
        base: base
        models: [a]
        options: {scale: 0.5}
        """,
    )
    for recipe, target in in_order(read_recipes(file), models / "out", models / "parts"):
        execute(prepare_recipe(recipe, output=target, near=models))
    base, a, b = (tensors_of(models / name)["lm_head.weight"] for name in ("base", "a", "b"))
    np.testing.assert_allclose(
        tensors_of(models / "out")["lm_head.weight"], ((base + a) / 2 + b) / 2, rtol=1e-5, atol=1e-6
    )
    assert (models / "parts" / "half" / "model.safetensors").is_file()


def test_recipes_that_use_each_other_in_a_circle_are_refused(models: Path) -> None:
    text = """
        name: one
        method: linear
        models: [two, a]
        ---
        name: two
        method: linear
        models: [one, a]
    """
    with pytest.raises(MethodError, match="circle: `one`, `two`"):
        list(in_order(read_recipes(write(models, text)), models / "out", models / "parts"))


def test_every_recipe_that_ships_is_read_and_says_what_its_file_is_for() -> None:
    shipped = shipped_recipes()
    wanted = {"adadare", "adadare-lora", "dare", "dare-ties", "tailor", "lorasculpt", "llava-1.5", "instructblip"}
    assert wanted <= set(shipped)
    for name, file in shipped.items():
        assert file.read_text().startswith("# "), name
        if name != "ties":  # read with TIES
            recipe = read_recipe(name)
            recipe.method_for("w", 0.0, sources=(), names=())
    assert read_recipe("adadare-lora").method_for("w", 0.0, sources=(), names=()).options()["gamma"] == 0.7


def test_the_recipe_for_llava_selects_eleven_layers_of_the_language_model() -> None:
    selection = read_recipe("llava-1.5").run.selection
    for prefix in ("language_model.model.", "model.language_model.", "model."):  # the last is the authors' own
        chosen = [i for i in range(32) if selection.covers(f"{prefix}layers.{i}.mlp.up_proj.weight")]
        assert chosen == list(range(0, 32, 3))
        assert selection.covers(f"{prefix}embed_tokens.weight")
    for tower in ("vision_tower.vision_model", "model.vision_tower.vision_tower.vision_model"):
        assert not selection.covers(f"{tower}.encoder.layers.3.mlp.fc1.weight")
    for name in ("lm_head.weight", "language_model.lm_head.weight", "model.mm_projector.0.weight"):
        assert selection.covers(name)


@pytest.mark.parametrize(("name", "expected"), [("llava-1.5", 2_509_864_960), ("instructblip", 188_833_792)])
def test_the_papers_recipes_select_what_it_fine_tunes(name: str, expected: int) -> None:
    """Parameters of the 7B models: 11 layers with embeddings, head and projector; 188.8 M."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    with torch.device("meta"):
        if name == "llava-1.5":
            vision = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, num_hidden_layers=4)
            model = LlavaForConditionalGeneration(
                LlavaConfig(text_config=LlamaConfig(vocab_size=32064), vision_config=vision)
            )
        else:
            text = LlamaConfig(num_hidden_layers=1).to_dict()
            model = InstructBlipForConditionalGeneration(InstructBlipConfig(text_config=text))
    selection = read_recipe(name).run.selection
    found = {own: p.numel() for own, p in model.state_dict().items() if selection.covers(own)}
    assert sum(found.values()) == expected


REFUSED = [
    ("method: dare\nbase: base\nmodel: [a]\n", 3, "`model`: unknown key", "did you mean `models`?"),
    ("method: dear\n", 1, "no method is called `dear`", "did you mean `dare`?"),
    ("method: dare\noptions:\n  sparsity: 0.5\n  gama: 1\n", 4, "`dare` has no option `gama`", None),
    ("method: dare\nmodels:\n  - model: a\n    scale: 2\n", 4, "the same for all models", None),
    ("method: dare\nrules:\n  - match: x\n    keep: both\n", 4, "input should be 'base' or 'tuned'", None),
    ("base: base\n", 1, "`method` is missing", None),
    ("method: dare\noptions: {sparsity: {slope: 1}}\n", 2, "expected a value or `{gradient", None),
    ("method: dare\nmethod: ties\n", 2, "`method` is given twice", None),
    ("method: [\n", 2, "not YAML", None),
    ("- method\n", 1, "a recipe is a mapping", None),
    ("", None, "the recipe is empty", None),
    ("merge_method: dare_linear\nmodels: [{model: a}]\n", 1, "`dare_linear` needs a `base_model`", None),
    ("merge_method: evolve\nmodels: [{model: a}]\n", 1, "`evolve` is not supported", None),
    ("merge_method: slerp\nbase_model: a\nmodels:\n- model: b\n  parameters: {tt: 1}\n", 5, "unknown key", None),
    ("merge_method: linear\nmodules:\n  text: {}\n", 2, "`modules`: is not supported", None),
    ("method: dare\nmodels: [a]\nslices: [{sources: [{model: a}]}]\n", 2, "slices name their models", None),
    ("method: dare\nslices:\n- sources: [{model: a, layers: [2, 2]}]\n", 3, "a later layer", None),
    ("merge_method: linear\nmodels: [{model: a+b+c}]\n", 2, "more than one adapter", None),
    ("merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: []}]\n", 1, "either `models` or `slices`", None),
    ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]\n", 2, "a later layer", None),
    ("merge_method: linear\nmodels: [{model: a}]\nout_dtypes: x\n", 3, "unknown key", "did you mean `out_dtype`?"),
    (
        "merge_method: linear\nmodels: [{model: a}]\nparameters:\n  weight:\n    - filter: x\n      values: 1\n",
        5,
        "unknown key `values`",
        None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message", "hint"), REFUSED)
def test_what_is_wrong_is_told_with_its_line(
    text: str, line: int | None, message: str, hint: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipes(file)
    assert caught.value.line == line
    assert message in caught.value.message
    if hint is not None:
        assert caught.value.hint == hint


UNEVEN = """
    merge_method: linear
    slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]}]
"""
WEIGHTLESS = """
    merge_method: dare_linear
    base_model: base
    models: [{model: a, parameters: {weight: 1}}, {model: b}]
"""


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("method: dare\nbase: base\nmodels: [gone]\n", CheckpointError, "`gone` does not exist"),
        ("method: dare\nmodels: [base, a]\n", MethodError, "DARE needs a base"),
        ("method: dare\nbase: base\nmodels: [a, b]\noptions: {weights: [1, 2, 3]}\n", MethodError, "3 values"),
        ("method: slerp\nbase: base\nmodels: [a, b]\n", MethodError, "SLERP takes 1 tuned model, got 2"),
        (STACK.replace("[0, 3]", "[0, 5]"), MethodError, "has 4 layers"),
        (UNEVEN, MethodError, "1 and 2 layers"),
        (WEIGHTLESS, MethodError, "`b` has no `weight`"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    text: str, error: type[SculptError], message: str, models: Path
) -> None:
    with pytest.raises(error, match=message):
        run(write(models, text), models / "out")
    assert not (models / "out").exists()


def test_a_model_may_be_named_with_an_adapter(models: Path, tensors_of: Read) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(9)
    folder = models / "lora"
    folder.mkdir()
    module = "base_model.model.model.layers.1.mlp.up_proj"
    factors = {
        f"{module}.lora_A.weight": rng.standard_normal((2, 8)),
        f"{module}.lora_B.weight": rng.standard_normal((12, 2)),
    }
    save_file(
        {name: factor.astype(np.float32) for name, factor in factors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "task_type": "CAUSAL_LM"}
        )
    )
    file = write(
        models,
        """
        merge_method: task_arithmetic
        base_model: base
        models: [{model: base+lora, parameters: {weight: 1.0}}]
        """,
    )
    run(file, models / "out")
    found, base = tensors_of(models / "out"), tensors_of(models / "base")
    name = "model.layers.1.mlp.up_proj.weight"
    product = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
    np.testing.assert_allclose(found[name], base[name] + 2 * product, rtol=1e-5, atol=1e-5)
    assert all((found[n] == base[n]).all() for n in base if n != name)


def test_options_of_task_arithmetic_without_settings_are_its_own() -> None:
    assert TaskArithmetic().options() == {"scale": 1.0, "weights": 1.0, "normalize": False}
