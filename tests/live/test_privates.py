"""The private parts of torch and transformers: each is there, does what we rely on, and is used in no other file.

They were checked with the versions below. Where a test fails with others, the reason is likely to be that they moved:
mend `live/privates.py`, `fusion/checkpoint/loading_rules.py` or `fusion/checkpoint/gguf/rules.py`, then write down the
new versions.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
import transformers
from packaging.requirements import Requirement
from sculpt.live import privates
from torch import nn

CHECKED = {"torch": "2.13.0", "transformers": "5.23.0"}
ROOT = Path(__file__).parents[2]
# The last uses one of Python's own: pickle has its reader that is written in Python under no other name.
USERS = {
    "live/privates.py",
    "fusion/checkpoint/gguf/rules.py",
    "fusion/checkpoint/loading_rules.py",
    "fusion/checkpoint/inert.py",
}
# What Python documents of named tuples, underscore or not.
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
# Modules whose names carry no underscore, yet that transformers documents nowhere as an interface.
INTERNAL = {
    "transformers.conversion_mapping",
    "transformers.core_model_loading",
    "transformers.dynamic_module_utils",
    "transformers.integrations.gguf.gguf_conversion_mapping",
    "transformers.modeling_gguf_pytorch_utils",
    "transformers.models.auto",
    "transformers.models.auto.auto_factory",
    "transformers.monkey_patching",
    "transformers.pytorch_utils",
}


@pytest.fixture(autouse=True)
def _versions() -> None:
    """Say, beside whatever fails, what was checked and what is here."""
    print(f"checked with {CHECKED}; here are { {name: version(name) for name in CHECKED} }")


def test_the_versions_that_were_checked_are_among_those_that_we_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["calibrate"]]
    wanted = {requirement.name: requirement.specifier for requirement in map(Requirement, listed)}
    for name, checked in CHECKED.items():
        assert wanted[name].contains(checked)


def _private_uses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), level=0):
                if module in INTERNAL or any(part.startswith("_") for part in _parts(module, node.names)):
                    yield ast.unparse(node)
            case ast.Attribute(value=ast.Name(id="self" | "cls" | "os")):
                pass
            case (
                ast.Attribute(attr=name)
                | ast.Call(
                    func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
                )
            ) if name.startswith("_") and name not in PUBLIC and not name.startswith(("__", "_repr_")):
                # Notebooks ask for `_repr_html_` and the like.
                yield ast.unparse(node)


def _parts(module: str, names: list[ast.alias]) -> list[str]:
    parts = [*module.split("."), *(alias.name for alias in names)]
    return [part for part in parts if not part.startswith("__")]


def test_no_other_file_uses_private_parts() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [ROOT.joinpath(*name.split(".")[1:]) for name in packages]
    found = {
        file.relative_to(ROOT).as_posix(): uses
        for folder in folders
        for file in folder.glob("*.py")
        if (uses := list(_private_uses(ast.parse(file.read_text()))))
    }
    assert found.keys() == USERS, found


class _Seen(privates.DispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_conversions_and_products_of_stacks_reach_the_dispatcher_under_private_names() -> None:
    with _Seen() as seen:
        torch.zeros(2).double()
        torch.zeros(2, 3, 4) @ torch.zeros(4, 5)
    assert privates.TO_COPY in seen.operators
    assert privates.UNSAFE_VIEW in seen.operators


def test_seeing_operations_imports_no_compiler() -> None:
    watch = (
        "import sys, torch; from sculpt.live.privates import DispatchMode\n"
        "class Seen(DispatchMode):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n"
        "        return func(*args, **(kwargs or {}))\n"
        "with Seen(): torch.ones(2) + 1\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_operator_that_torch_lacks_is_none() -> None:
    assert privates.newer_operator("_no_such_operator") is None
    for name in ("_grouped_mm", "_fused_rms_norm"):
        assert isinstance(privates.newer_operator(name), torch._ops.OpOverload)


def test_a_storage_is_known_by_its_key_and_found_by_its_reference() -> None:
    tensor = torch.arange(6.0)
    view, other = tensor.view(2, 3)[1], torch.arange(6.0)
    assert privates.storage_key(view) == privates.storage_key(tensor.untyped_storage())
    assert privates.storage_key(other) != privates.storage_key(tensor)
    reference = privates.StorageWeakRef(tensor.untyped_storage())
    assert privates.storage_of(reference).data_ptr() == tensor.data_ptr()
    del tensor, view
    assert reference.expired()


def test_writing_in_place_is_counted_and_reading_is_not() -> None:
    tensor = torch.zeros(3)
    before = privates.changes_of(tensor)
    tensor + 1
    assert privates.changes_of(tensor) == before
    tensor[:2].add_(1)
    assert privates.changes_of(tensor) == before + 1


def test_operators_say_which_outputs_alias_an_input() -> None:
    aten = torch.ops.aten
    assert privates.aliases_of(aten.add.Tensor) == ()
    assert privates.aliases_of(aten.view.default) == (False,)
    assert privates.aliases_of(aten.add_.Tensor) == (True,)


def test_parameters_and_buffers_are_put_in_place_of_others() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    weight, mean = nn.Parameter(torch.full((2,), 3.0)), torch.full((2,), 4.0)
    privates.set_tensor(model, "0.weight", weight)
    privates.set_tensor(model, "0.running_mean", mean)
    assert dict(model.named_parameters())["0.weight"] is weight
    assert dict(model.named_buffers())["0.running_mean"] is mean


def _llama(**given: Any) -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaConfig(vocab_size=11, **{**sizes, **given})


def test_an_auto_class_gives_the_class_of_a_config_that_it_knows() -> None:
    assert privates.class_of(transformers.AutoModelForCausalLM, _llama()) is transformers.LlamaForCausalLM
    assert privates.class_of(transformers.AutoModelForCausalLM, transformers.ViTConfig()) is None


def test_a_model_on_meta_has_no_data_and_runs_expert_after_expert() -> None:
    config = _llama()
    model = privates.on_meta(transformers.LlamaForCausalLM, config, torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert config._experts_implementation == "eager"


def test_parameters_that_a_model_wants_in_float32_are() -> None:
    config = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = privates.on_meta(transformers.T5ForConditionalGeneration, config, torch.float16)
    wide = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == {"encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo"}
    assert "lm_head.weight" in privates.tied_names(model)
    assert set(privates.tied_names(model).values()) == {"shared.weight"}


def test_what_is_missing_is_initialised_and_nothing_else() -> None:
    model = privates.on_meta(transformers.LlamaForCausalLM, _llama(tie_word_embeddings=True), torch.float32)
    assert privates.tied_names(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    for name, tensor in model.state_dict(keep_vars=True).items():
        privates.set_tensor(model, name, nn.Parameter(torch.full_like(tensor, 7.0, device="cpu")))
    for name, buffer in list(model.named_non_persistent_buffers()):
        privates.set_tensor(model, name, torch.zeros_like(buffer, device="cpu"))
    missing = {"model.norm.weight", "lm_head.weight"}
    privates.initialise(model, missing)
    values = dict(model.named_parameters(remove_duplicate=False))
    assert set(values["model.norm.weight"].tolist()) == {1.0}
    assert all((value == 7).all() for name, value in values.items() if name not in missing)
    assert values["lm_head.weight"] is values["model.embed_tokens.weight"]
    # Rotary frequencies are in no checkpoint: whoever leaves them zero runs a model without positions.
    assert all(buffer.count_nonzero() for _, buffer in model.named_non_persistent_buffers())


def test_models_say_what_may_be_missing_and_what_is_not_to_be_split() -> None:
    llama = privates.on_meta(transformers.LlamaForCausalLM, _llama(), torch.float32)
    assert privates.undivided(llama) == {"LlamaDecoderLayer"}
    assert privates.may_be_missing(llama) == []
    config = transformers.RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    roberta = transformers.RobertaForMaskedLM(config)
    assert isinstance(privates.may_be_missing(roberta), list)
    # Buffers that older versions stored: `from_pretrained` passes over them.
    assert r"(^|\.)position_ids$" in privates.may_be_unexpected(roberta)
    assert r"rotary_emb\.inv_freq" in privates.may_be_unexpected(llama)


def test_the_linear_layer_of_gpt2_stores_its_weight_transposed() -> None:
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)
    layer = privates.on_meta(transformers.GPT2LMHeadModel, config, torch.float32).transformer.h[0].attn.c_attn
    assert isinstance(layer, privates.transposed_linear())
    assert tuple(layer.weight.shape) == (8, 24)  # (d_in, d_out)


def test_a_trainer_is_kept_to_one_gpu(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 4
    assert arguments.n_gpu == 4
    privates.use_one_gpu(arguments)
    assert arguments.n_gpu == 1
