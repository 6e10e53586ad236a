"""Recipes that people of other projects ran, and what they are to give; the numbers are those of their threads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from safetensors.numpy import save_file
from sculpt.fusion.errors import SculptError
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.fuse import execute

Tensors = dict[str, np.ndarray]
Models = Mapping[str, Tensors]
NUM_LAYERS = 4
SCALE = 2.0  # alpha/r of the adapters
CONFIG = {"model_type": "llama", "num_hidden_layers": NUM_LAYERS, "vocab_size": 11, "tie_word_embeddings": False}


def small(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (11, 8)}
    for i in range(NUM_LAYERS):
        shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (12, 8), f"model.layers.{i}.self_attn.q_proj.weight": (8, 8)}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (11, 8)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_adapter(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Write a LoRA of the attention as PEFT does, its base named where it is not; return its δ by tensor."""
    rng, own, deltas = np.random.default_rng(seed), {}, {}
    for i in range(NUM_LAYERS):
        name = f"model.layers.{i}.self_attn.q_proj"
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
        own |= {f"base_model.model.{name}.lora_{k}.weight": factor for k, factor in (("A", a), ("B", b))}
        deltas[f"{name}.weight"] = SCALE * (b.astype(np.float64) @ a)
    folder.mkdir()
    save_file(own, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2 * SCALE, "base_model_name_or_path": "nowhere/to-be-found"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return deltas


@pytest.fixture
def models(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Models:
    """Write base, a and b and the adapters lora and more; return what each is, with an adapter and without."""
    found: dict[str, Tensors] = {}
    for seed, name in enumerate(("base", "a", "b", "a+b")):
        found[name] = small(seed)
        make_checkpoint(name, found[name], config=CONFIG)
    for seed, adapter in enumerate(("lora", "more")):
        deltas = write_adapter(tmp_path / adapter, seed)
        for name in ("base", "a"):
            found[f"{name}+{adapter}"] = {n: t + deltas.get(n, np.float32(0)) for n, t in found[name].items()}
    return found


def mean(models: Models, **weights: float) -> Tensors:
    """Return Σ w·W / Σ w; `__` in a name is a `+`."""
    found = {name.replace("__", "+"): weight for name, weight in weights.items()}
    return {n: sum(w * models[m][n] for m, w in found.items()) / sum(found.values()) for n in models["base"]}


def moved(models: Models, base: str, **weights: float) -> Tensors:
    """Return base + Σ w·(W − base)."""
    found = {name.replace("__", "+"): weight for name, weight in weights.items()}
    return {n: t + sum(w * (models[m][n] - t) for m, w in found.items()) for n, t in models[base].items()}


def stacked(models: Models, *layers: tuple[str, int]) -> Tensors:
    """Return the layers in their order; the embedding is the first one's, what follows the layers the last one's."""
    found = {"model.embed_tokens.weight": models[layers[0][0]]["model.embed_tokens.weight"]}
    for i, (model, layer) in enumerate(layers):
        for kind in ("mlp.up_proj.weight", "self_attn.q_proj.weight"):
            found[f"model.layers.{i}.{kind}"] = models[model][f"model.layers.{layer}.{kind}"]
    return found | {name: models[layers[-1][0]][name] for name in ("model.norm.weight", "lm_head.weight")}


# What mergekit 0.1.5 makes of these was compared too (tests/mergekit), where it runs them.
RUN: dict[str, tuple[str, Callable[[Models], Tensors]]] = {
    "mergekit: bake an adapter": (
        "{merge_method: passthrough, models: [{model: base+lora}]}",
        lambda m: m["base+lora"],
    ),
    "mergekit: an adapter in each slice": (
        """
        merge_method: passthrough
        slices:
        - sources: [{model: base+lora, layer_range: [0, 2]}]
        - sources: [{model: a+more, layer_range: [1, 3]}]
        """,
        lambda m: stacked(m, ("base+lora", 0), ("base+lora", 1), ("a+more", 1), ("a+more", 2)),
    ),
    "mergekit: an adapter first of an average": (
        """
        merge_method: linear
        models:
        - {model: base+lora, parameters: {weight: 0.3}}
        - {model: a+more, parameters: {weight: 0.7}}
        """,
        lambda m: mean(m, base__lora=0.3, a__more=0.7),
    ),
    "mergekit: an adapter on the base of deltas": (
        "{merge_method: task_arithmetic, base_model: base+lora, models: [{model: a, parameters: {weight: 0.5}}]}",
        lambda m: moved(m, "base+lora", a=0.5),
    ),
    "mergekit: an adapter alone in an average": (
        "{merge_method: linear, models: [{model: base+lora, parameters: {weight: 1}}]}",
        lambda m: m["base+lora"],
    ),
    "mergekit: one model, its weights not normalised": (
        "{merge_method: linear, models: [{model: a, parameters: {weight: 3}}], parameters: {normalize: false}}",
        lambda m: {name: 3 * tensor for name, tensor in m["a"].items()},
    ),
    "mergekit: the base alone": (
        "{merge_method: ties, base_model: base+lora, models: [{model: base+lora}]}",
        lambda m: m["base+lora"],
    ),
    "mergekit#470: adapters in the place of models": (
        """
        merge_method: task_arithmetic
        base_model: base
        models:
        - {model: lora, parameters: {weight: 0.5}}
        - {model: more, parameters: {weight: 0.25}}
        """,
        lambda m: moved(m, "base", base__lora=0.5, base__more=0.25),
    ),
    "mergekit#198: slices of one source, and of a source without weight": (
        """
        merge_method: linear
        parameters: {weight: 1.0}
        slices:
        - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1], parameters: {weight: 0}}]
        - sources: [{model: base, layer_range: [1, 3]}]
        - sources: [{model: a, layer_range: [1, 3]}]
        """,
        lambda m: stacked(m, ("base", 0), ("base", 1), ("base", 2), ("a", 1), ("a", 2)),
    ),
    "mergekit#198: DARE-TIES with a slice of the base": (
        """
        merge_method: dare_ties
        base_model: base
        parameters: {density: 1, weight: 1}
        slices:
        - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]
        - sources: [{model: base, layer_range: [1, 3]}]
        """,
        lambda m: stacked(m, ("a", 0), ("base", 1), ("base", 2)),
    ),
    **{
        f"mergekit#198: {method} of slices of one source": (
            f"""
            merge_method: {method}
            slices:
            - sources: [{{model: base, layer_range: [0, 2]{weight}}}]
            - sources: [{{model: a, layer_range: [1, 3]{weight}}}]
            """,
            lambda m: stacked(m, ("base", 0), ("base", 1), ("a", 1), ("a", 2)),
        )
        for method, weight in (("karcher", ""), ("multislerp", ", parameters: {weight: 1}"))
    },
    "mergekit: a path with a plus": (
        "{merge_method: passthrough, models: [{model: a+b}]}",
        lambda m: m["a+b"],
    ),
    "slices in sculpt's own YAML": (
        """
        method: linear
        slices:
        - sources:
          - {model: base, adapter: lora, layers: [0, 1], weights: 0.4}
          - {model: a, layers: [0, 1], weights: 0.6}
        - sources: [{model: b, layers: [2, 4]}]
        """,
        lambda m: stacked({"x": mean(m, base__lora=0.4, a=0.6), "b": m["b"]}, ("x", 0), ("b", 2), ("b", 3)),
    ),
}  # fmt: skip


def run(folder: Path, text: str) -> Manifest:
    (folder / "recipe.yaml").write_text(dedent(text))
    recipe = read_recipe(str(folder / "recipe.yaml"))
    return execute(prepare_recipe(recipe, output=folder / "out", near=folder))


@pytest.mark.parametrize("case", RUN)
def test_recipes_of_mergekit_run(
    case: str, models: Models, tmp_path: Path, tensors_of: Callable[[Path], Tensors]
) -> None:
    text, expected = RUN[case]
    run(tmp_path, text)
    found, wanted = tensors_of(tmp_path / "out"), expected(models)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% endfor %}"
OTHER = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TWO = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: base}, {model: a}, {model: b}]\n"
NOTES = {
    "mergekit: random_seed": (TWO + "random_seed: 7\n", "`random_seed` in line 4 of the recipe has no effect"),
    "mergekit: a parameter of another method": (
        TWO.replace("weight: 1", "weight: 1, density: 0.5"),
        "`parameters.density` in line 2 of the recipe has no effect",
    ),
    "mergekit#428: auto where there is no template": (
        TWO + "chat_template: auto\n",
        "no model has a chat template, so the output has none",
    ),
    "mergekit: nothing but the base": (
        "{merge_method: ties, base_model: base, models: [{model: base}]}",
        "`{base}` is taken as it is: there is nothing to merge into it",
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_has_no_effect_is_told(case: str, models: Models, tmp_path: Path) -> None:
    text, note = NOTES[case]
    assert run(tmp_path, text).notes == (note.replace("{base}", "base"),)


REFUSED = {
    "a slip": (TWO + "dtypes: float16\n", "`dtypes`: unknown key"),
    "a slip in a parameter": (TWO.replace("weight", "wieght"), "`parameters.wieght`: unknown key"),
    "no such template": (TWO + "chat_template: chatlm\n", "no chat template is called `chatlm`"),
    "slices of two bases share an adapter": (
        """
        merge_method: task_arithmetic
        parameters: {weight: 1}
        slices:
        - {base_model: base, sources: [{model: lora, layer_range: [0, 1]}]}
        - {base_model: a, sources: [{model: lora, layer_range: [1, 2]}]}
        """,
        "`lora` is an adapter, and the slices that use it have the bases `a` and `base`",
    ),
    "a method of deltas without a base": (
        "{method: ties, models: [a]}",
        "TIES needs a base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str, models: Models, tmp_path: Path) -> None:
    text, told = REFUSED[case]
    with pytest.raises(SculptError) as caught:
        run(tmp_path, text)
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", CHATML),  # mergekit#428, #469: that of most models
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),  # mergekit#671
        ("llama3", "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
                   "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral", "<s> [INST] hi [/INST]"),
        ("alpaca", "### Instruction:\nhi\n\n### Response:\n"),
        ("exaone", "[|system|][|endofturn|]\n[|user|]hi\n[|assistant|]"),
        ("'{{ messages[0].content }}!'", "hi!"),
    ],
)  # fmt: skip
def test_the_chat_template_that_a_recipe_asks_for_is_what_the_tokenizer_has(
    asked: str, expected: str, models: Models, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name, template in (("base", OTHER), ("a", CHATML), ("b", CHATML)):
        inner = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
    # As older releases of transformers save it.
    config = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps({**config, "chat_template": OTHER}))
    (tmp_path / "base/chat_template.jinja").unlink()
    run(tmp_path, TWO + f"chat_template: {asked}\n")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    if asked == "auto":
        assert found.chat_template == expected
        return
    told = found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert told == expected
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["chat_template"] == found.chat_template
